"""From one grid to another: axis by axis where that is exact, by MONAI's `SpatialResample` where it is not.

Between two grids whose axes are parallel, trilinear interpolation is three linear interpolations, one along
each axis, of which each costs two reads a voxel instead of eight and no grid of coordinates. Images are
stored along the patient's axes or at one angle to them, and spacing changes neither, so nearly every
resampling of a study is of this kind. MONAI's result differs from this one by the rounding of its float32
coordinates: 0.02 HU of a body in air where this one is within 0.0001 of float64 (`benchmarks/loading.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Two grids count as parallel if over their whole extent no voxel is further off than this part of a voxel: a
# thousandth of what interpolation itself blurs.
PARALLEL_VOXELS = 1e-3

# An axis whose voxels stay in place to this part of a voxel is left alone.
SAME_VOXELS = 1e-6


def resample(
    array: NDArray,
    affine_ras: NDArray[np.float64],
    to_affine_ras: NDArray[np.float64],
    to_shape: tuple[int, int, int],
    *,
    nearest: bool,
) -> NDArray:
    """Return an array (C, X, Y, Z) on another grid, as (C, *to_shape); outside its own the border goes on.

    Linear interpolation gives float32; `nearest` keeps the type, and of two voxels equally near it takes the
    even one, as numbers are rounded.
    """
    places = parallel(affine_ras, to_affine_ras, array.shape[1:], to_shape)
    if places is None:
        return _by_monai(array, affine_ras, to_affine_ras, to_shape, nearest)
    # numpy gathers from a transposed view, as a DICOM volume is, much more slowly than it copies it.
    found = np.ascontiguousarray(array, array.dtype if nearest else np.float32)
    # The axes that lose most voxels first, so that the others have less to do.
    for axis in sorted(places, key=lambda axis: len(places[axis][1]) / array.shape[1 + axis]):
        found = _along(found, 1 + axis, places[axis][1], nearest)
    order = sorted(places, key=lambda axis: places[axis][0])
    return np.ascontiguousarray(found.transpose(0, *(1 + axis for axis in order)))


def parallel(
    affine_ras: NDArray[np.float64],
    to_affine_ras: NDArray[np.float64],
    shape: tuple[int, ...],
    to_shape: tuple[int, ...],
) -> dict[int, tuple[int, NDArray[np.float64]]] | None:
    """Return for each axis the axis it becomes and where on it that one's voxels lie; None for turned grids."""
    to_voxels = np.linalg.solve(affine_ras, to_affine_ras)
    turn = to_voxels[:3, :3]
    along = np.abs(turn).argmax(axis=1)  # axis -> the other grid's axis along it
    if sorted(along.tolist()) != [0, 1, 2]:
        return None
    beside = np.abs(turn)
    beside[range(3), along] = 0
    if float((beside @ np.asarray(to_shape, float)).max()) > PARALLEL_VOXELS:
        return None
    places = {}
    for axis, other in enumerate(along.tolist()):
        at = turn[axis, other] * np.arange(to_shape[other]) + to_voxels[axis, 3]
        places[axis] = other, np.clip(at, 0, shape[axis] - 1)
    return places


def _along(array: NDArray, axis: int, places: NDArray[np.float64], nearest: bool) -> NDArray:
    """Return an array with the values at these places along one axis."""
    import torch

    whole = np.rint(places)
    if len(places) == array.shape[axis] and np.abs(places - np.arange(len(places))).max() < SAME_VOXELS:
        return array
    # numpy gathers along the last axis ten times as fast as torch's index_select; torch interpolates
    # in one pass.
    if nearest or np.abs(places - whole).max() < SAME_VOXELS:
        return np.take(array, whole.astype(np.intp), axis)
    lower = np.minimum(np.floor(places).astype(np.intp), array.shape[axis] - 2)
    found = torch.from_numpy(np.take(array, lower, axis))
    upper = torch.from_numpy(np.take(array, lower + 1, axis))
    share = torch.from_numpy((places - lower).astype(np.float32))
    return found.lerp_(upper, share.reshape([-1] + [1] * (array.ndim - 1 - axis))).numpy()


def _by_monai(
    array: NDArray,
    affine_ras: NDArray[np.float64],
    to_affine_ras: NDArray[np.float64],
    to_shape: tuple[int, int, int],
    nearest: bool,
) -> NDArray:
    import torch
    from monai.data import MetaTensor
    from monai.transforms import SpatialResample

    placed = MetaTensor(
        torch.as_tensor(np.ascontiguousarray(array, np.float32)),
        affine=torch.as_tensor(affine_ras, dtype=torch.float64),
    )
    transform = SpatialResample(
        mode="nearest" if nearest else "bilinear", padding_mode="border", dtype=np.float32
    )
    moved = transform(placed, dst_affine=torch.as_tensor(to_affine_ras), spatial_size=to_shape)
    assert isinstance(moved, MetaTensor)
    found = moved.as_tensor().numpy()
    return found.astype(array.dtype) if nearest else found
