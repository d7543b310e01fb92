"""medfed's readers for MONAI: `LoadImage(reader=MedfedReader())` returns the volume of `medfed.read`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from medfed.data.read import read
from medfed.data.volume import Volume
from medfed.errors import ImageError

PathLike = str | os.PathLike[str]


class MedfedReader(ImageReader):
    """A MONAI reader on top of `medfed.read`, whose keyword arguments it takes; the affine is RAS."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return True, because the content decides and not the name."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **options: Any) -> list[Volume]:
        """Return one volume for each path.

        Raises:
            ImageError: if a path contains several volumes, or cannot be read correctly.
        """
        paths = [data] if isinstance(data, str | os.PathLike) else list(data)
        volumes = []
        for path in paths:
            from_path = read(path, **{**self.options, **options})
            if len(from_path) != 1:
                raise ImageError(f"{len(from_path)} volumes where MONAI takes one; give each its own path")
            volumes.append(from_path[0])
        return volumes

    def get_data(self, img: Sequence[Volume] | Volume) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the array, channels first if there are several, and its metadata, without
        path or header values.

        Raises:
            ImageError: if several volumes are on different grids.
        """
        volumes = [img] if isinstance(img, Volume) else list(img)
        affine = volumes[0].affine_ras
        for volume in volumes[1:]:
            if volume.shape != volumes[0].shape or not np.allclose(volume.affine_ras, affine, atol=1e-3):
                raise ImageError("the images of one case are on different grids; resample them onto one")
        array = np.concatenate([volume.array for volume in volumes])
        channel = "no_channel" if len(array) == 1 else 0
        meta: dict[str, Any] = {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(volumes[0].shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: channel,
        }
        return (array[0] if len(array) == 1 else array), meta
