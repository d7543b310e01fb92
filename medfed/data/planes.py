"""The grids of 2D studies: each plane (X, Y) of an image is scaled, and the distance of slices stays.

A plane is scaled over its whole field of view: the outer edges of the first and the last pixel stay where
they are, and each new pixel is the weighted mean of those that it covers (bilinear with antialiasing, as
torchvision's and Pillow's resizing). Interpolation alone would skip most pixels of a radiograph that is
reduced to a tenth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.settings import Images
from medfed.data.volume import Volume

# The flag of an image whose file gives no size in mm; its spacing is 1, for one pixel.
PIXELS = "pixels"

Grid = tuple[NDArray[np.float64], tuple[int, int, int]]


def in_pixels(image: Volume) -> bool:
    """Whether an image's file gives no size in mm."""
    return PIXELS in image.info.flags


def axis_across(image: Volume, settings: Images) -> int:
    """Return which of a file's X, Y and Z (0, 1, 2) runs across the study's slices."""
    axes = image.axes_ras
    if settings.slices is None or axes is None:
        return 2
    return axes[("sagittal", "coronal", "axial").index(settings.slices)]


def study_grid(shape: tuple[int, ...], affine_ras: NDArray[np.float64], settings: Images) -> Grid | None:
    """Return affine and shape (X, Y, Z) of the grid that the planes of an image are scaled to.

    None if they keep their pixels. A size is rounded to whole pixels, so the new spacing differs from
    `data.spacing_mm` by up to half a pixel over the whole plane.
    """
    if settings.spacing_mm == "native":
        return None
    own = np.linalg.norm(affine_ras[:3, :2], axis=0)
    extent = own * shape[:2]
    wanted = _spacing(extent, settings)
    x, y = (max(1, round(float(size))) for size in extent / wanted)
    if (x, y) == tuple(shape[:2]):
        return None
    to_shape = (x, y, int(shape[2]))
    return scaled_affine(affine_ras, shape, to_shape), to_shape


def _spacing(extent: NDArray[np.float64], settings: Images) -> NDArray[np.float64]:
    """Return the size of a new pixel along X and Y."""
    if settings.spacing_mm == "fit":
        assert settings.patch is not None
        # One factor for both axes: a body keeps its proportions.
        return np.full(2, float((extent / settings.patch).max()))
    return np.asarray(settings.spacing_mm, np.float64)


def scaled_affine(
    affine_ras: NDArray[np.float64], shape: tuple[int, ...], to_shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return the affine of another number of voxels over the same field of view."""
    factors = np.divide(shape, to_shape)
    moved = np.eye(4)
    moved[:3, :3] = np.diag(factors)
    moved[:3, 3] = (factors - 1) / 2
    return np.asarray(affine_ras @ moved, np.float64)


def scaled(array: NDArray[Any], to_shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return an image (C, X, Y, Z) with planes of another size, as float32."""
    import torch
    from torch.nn.functional import interpolate

    slices = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, 3, 0), np.float32))
    resized = interpolate(slices, to_shape[:2], mode="bilinear", antialias=True)
    return np.ascontiguousarray(np.moveaxis(resized.numpy(), 0, 3))
