"""Linear interpolation of slices onto an upright or even grid, if the caller asks for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# An offset within this of whole pixels is whole: positions are written to about a thousandth of a pixel.
WHOLE_PIXELS = 1e-4


def correct_gantry_tilt(
    array: NDArray[np.float32], affine_ras: NDArray[np.float64], background: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a sheared stack, (slices, rows, columns), and its affine on an upright grid.

    The grid grows to contain every voxel. A voxel that its slice covers only in part becomes background, so
    that no value is half background.
    """
    columns, rows, step = affine_ras[:3, 0], affine_ras[:3, 1], affine_ras[:3, 2]
    slide_x = float(step @ columns / (columns @ columns))  # pixels per slice
    slide_y = float(step @ rows / (rows @ rows))
    count, height, width = array.shape
    offsets_x, offsets_y = slide_x * np.arange(count), slide_y * np.arange(count)
    first_x, first_y = int(np.floor(offsets_x.min())), int(np.floor(offsets_y.min()))
    new_width = width + int(np.ceil(offsets_x.max())) - first_x
    new_height = height + int(np.ceil(offsets_y.max())) - first_y
    out = np.full((count, new_height, new_width), background, np.float32)
    for k in range(count):
        rows_done = _shifted(array[k], offsets_y[k] - first_y, new_height, background)
        out[k] = _shifted(rows_done.T, offsets_x[k] - first_x, new_width, background).T
    straight = affine_ras.copy()
    straight[:3, 2] = step - slide_x * columns - slide_y * rows
    straight[:3, 3] += first_x * columns + first_y * rows
    return out, straight


def _shifted(
    plane: NDArray[np.float32], offset: float, length: int, background: float
) -> NDArray[np.float32]:
    """Return a plane shifted along its first axis by `offset` >= 0 pixels, with `length` rows."""
    whole = round(offset)
    positions = np.arange(length) - (whole if abs(offset - whole) < WHOLE_PIXELS else offset)
    low = np.floor(positions).astype(int)
    weight = (positions - low).astype(np.float32)[:, None]
    padded = np.full((length + 2 + plane.shape[0], plane.shape[1]), background, np.float32)
    padded[1 : 1 + plane.shape[0]] = plane
    low = np.clip(low, -1, plane.shape[0])
    upper = padded[low + 2]
    mixed = padded[low + 1] * (1 - weight) + upper * weight
    mixed[(low < 0) | (low >= plane.shape[0] - 1)] = background
    return np.asarray(np.where(weight == 0, padded[low + 1], mixed))


def resample_even(
    array: NDArray[np.float32], affine_ras: NDArray[np.float64], along_mm: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return uneven slices, (slices, rows, columns), interpolated at their median distance, and affine."""
    positions = np.asarray(along_mm)
    step_mm = float(np.median(np.diff(positions)))
    count = int(np.floor(positions[-1] / step_mm + 1e-6)) + 1
    even_positions = np.minimum(np.arange(count) * step_mm, positions[-1])
    low = np.clip(np.searchsorted(positions, even_positions, side="right") - 1, 0, len(positions) - 2)
    weight = ((even_positions - positions[low]) / (positions[low + 1] - positions[low])).astype(np.float32)
    out = np.empty((count, *array.shape[1:]), np.float32)
    for k in range(count):
        out[k] = (
            array[low[k]]
            if weight[k] == 0
            else array[low[k]] * (1 - weight[k]) + array[low[k] + 1] * weight[k]
        )
    even = affine_ras.copy()
    even[:3, 2] *= step_mm / (positions[-1] / (len(positions) - 1))
    return out, even


def interpolated_slices(along_mm: Sequence[float]) -> tuple[int, ...]:
    """Return which slices of `resample_even` are over a tenth of a step from each that was taken."""
    step_mm = float(np.median(np.diff(along_mm)))
    even = np.arange(int(np.floor(along_mm[-1] / step_mm + 1e-6)) + 1) * step_mm
    nearest_mm = np.abs(even[:, None] - np.asarray(along_mm)).min(axis=1)
    return tuple(np.flatnonzero(nearest_mm > 0.1 * step_mm).tolist())
