"""medfed's readers for MONAI: `LoadImage(reader=MedfedReader())` gives the volume that `medfed.read`
gives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils import MetaKeys, SpaceKeys

from medfed.data.read import read
from medfed.data.volume import Volume
from medfed.errors import ImageError

PathLike = str | os.PathLike


class MedfedReader(ImageReader):
    """Volumes right or refused, with an RAS affine; keyword arguments are those of `medfed.read`."""

    def __init__(self, **wishes: Any) -> None:
        super().__init__()
        self.wishes = wishes

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return True: the content decides, not the name."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **wishes: Any) -> list[Volume]:
        """Return one volume for each path.

        Raises:
            ImageError: if a path holds several volumes, or cannot be read rightly.
        """
        paths = [data] if isinstance(data, str | os.PathLike) else list(data)
        volumes = []
        for path in paths:
            found = read(path, **{**self.wishes, **wishes})
            if len(found) != 1:
                raise ImageError(f"{len(found)} volumes where MONAI takes one; give each its own path")
            volumes.append(found[0])
        return volumes

    def get_data(self, img: Sequence[Volume] | Volume) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the array, channels first where there are several, and its affine; no path or header value.

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
