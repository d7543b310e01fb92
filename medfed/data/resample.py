"""Resampling from one grid to another: exactly along parallel axes, otherwise by MONAI's `SpatialResample`.

Between two grids with parallel axes, trilinear interpolation is three linear interpolations, one along each
axis. Each of them reads two values per voxel instead of eight and needs no grid of coordinates. Images are
stored along the patient's axes or at one angle to them, and spacing changes neither, so nearly every
resampling of a study is of this kind. MONAI's result differs by the rounding of its float32 coordinates: by
0.02 HU for a body in air, where this one is within 0.0001 of float64 (`benchmarks/loading.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Two grids are parallel if no voxel of their whole extent is off by more than this fraction of a voxel: a
# thousandth of the blur of interpolation itself.
PARALLEL_VOXELS = 1e-3

# An axis whose voxels move by less than this fraction of a voxel is left unchanged.
SAME_VOXELS = 1e-6


def resample(
    array: NDArray[Any],
    affine_ras: NDArray[np.float64],
    to_affine_ras: NDArray[np.float64],
    to_shape: tuple[int, int, int],
    *,
    nearest: bool,
) -> NDArray[Any]:
    """Return an array (C, X, Y, Z) on another grid, as (C, *to_shape); values outside repeat the border.

    Linear interpolation returns float32. `nearest` keeps the type; of two voxels at the same distance it
    takes the one with the even index, as rounding does.
    """
    positions = axis_positions(affine_ras, to_affine_ras, array.shape[1:], to_shape)
    if positions is None:
        return _by_monai(array, affine_ras, to_affine_ras, to_shape, nearest)
    # numpy gathers from a transposed view, as a DICOM volume is, much more slowly than it copies one.
    moved = np.ascontiguousarray(array, array.dtype if nearest else np.float32)
    # The axes that lose most voxels come first, so that less remains for the others.
    for axis in sorted(positions, key=lambda axis: len(positions[axis][1]) / array.shape[1 + axis]):
        moved = _along(moved, 1 + axis, positions[axis][1], nearest)
    order = sorted(positions, key=lambda axis: positions[axis][0])
    return np.ascontiguousarray(moved.transpose(0, *(1 + axis for axis in order)))


def axis_positions(
    affine_ras: NDArray[np.float64],
    to_affine_ras: NDArray[np.float64],
    shape: tuple[int, ...],
    to_shape: tuple[int, ...],
) -> dict[int, tuple[int, NDArray[np.float64]]] | None:
    """Return per axis the target axis and its voxels' positions, or None if the grids are not parallel."""
    to_voxels = np.linalg.solve(affine_ras, to_affine_ras)
    turn = to_voxels[:3, :3]
    along = np.abs(turn).argmax(axis=1)  # axis -> the other grid's axis along it
    if sorted(along.tolist()) != [0, 1, 2]:
        return None
    beside = np.abs(turn)
    beside[range(3), along] = 0
    if float((beside @ np.asarray(to_shape, float)).max()) > PARALLEL_VOXELS:
        return None
    positions = {}
    for axis, other in enumerate(along.tolist()):
        at = turn[axis, other] * np.arange(to_shape[other]) + to_voxels[axis, 3]
        positions[axis] = other, np.clip(at, 0, shape[axis] - 1)
    return positions


def _along(array: NDArray[Any], axis: int, positions: NDArray[np.float64], nearest: bool) -> NDArray[Any]:
    """Return an array with the values at these positions along one axis."""
    import torch

    whole = np.rint(positions)
    if (
        len(positions) == array.shape[axis]
        and np.abs(positions - np.arange(len(positions))).max() < SAME_VOXELS
    ):
        return array
    # numpy gathers along the last axis ten times as fast as torch's index_select; torch interpolates in one
    # pass.
    if nearest or np.abs(positions - whole).max() < SAME_VOXELS:
        return np.take(array, whole.astype(np.intp), axis)
    lower = np.minimum(np.floor(positions).astype(np.intp), array.shape[axis] - 2)
    below = torch.from_numpy(np.take(array, lower, axis))
    above = torch.from_numpy(np.take(array, lower + 1, axis))
    weight = torch.from_numpy((positions - lower).astype(np.float32))
    return np.asarray(below.lerp_(above, weight.reshape([-1] + [1] * (array.ndim - 1 - axis))).numpy())


def _by_monai(
    array: NDArray[Any],
    affine_ras: NDArray[np.float64],
    to_affine_ras: NDArray[np.float64],
    to_shape: tuple[int, int, int],
    nearest: bool,
) -> NDArray[Any]:
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import SpatialResample

    placed = MetaTensor(
        torch.as_tensor(np.ascontiguousarray(array, np.float32)),
        affine=torch.as_tensor(affine_ras, dtype=torch.float64),
    )
    transform = SpatialResample(
        mode="nearest" if nearest else "bilinear", padding_mode="border", dtype=np.float32
    )
    moved = transform(placed, dst_affine=torch.as_tensor(to_affine_ras), spatial_size=to_shape)
    assert isinstance(moved, MetaTensor)
    values: NDArray[Any] = moved.as_tensor().numpy()
    return values.astype(array.dtype) if nearest else values
