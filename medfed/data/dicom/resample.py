"""Slices brought onto an correct_gantry_tilt, even grid by linear interpolation, where this is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# A slide this near to whole pixels is whole: positions are written to a thousandth of a pixel or so.
WHOLE_PIXELS = 1e-4


def correct_gantry_tilt(
    array: NDArray[np.float32], affine_ras: NDArray[np.float64], background: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a sheared stack, (slices, rows, columns), on a grid whose slices lie straight above each other.

    The grid grows so that it holds every voxel; what its slice does not cover, or only in part, is
    background, so that no value is half of it.
    """
    columns, rows, step = affine_ras[:3, 0], affine_ras[:3, 1], affine_ras[:3, 2]
    slide_x = float(step @ columns / (columns @ columns))  # pixels a slice
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
    """Return plane moved down its first axis by `offset` >= 0 pixels into `length` rows."""
    whole = round(offset)
    places = np.arange(length) - (whole if abs(offset - whole) < WHOLE_PIXELS else offset)
    low = np.floor(places).astype(int)
    weight = (places - low).astype(np.float32)[:, None]
    padded = np.full((length + 2 + plane.shape[0], plane.shape[1]), background, np.float32)
    padded[1 : 1 + plane.shape[0]] = plane
    low = np.clip(low, -1, plane.shape[0])
    upper = padded[low + 2]
    mixed = padded[low + 1] * (1 - weight) + upper * weight
    mixed[(low < 0) | (low >= plane.shape[0] - 1)] = background
    return np.where(weight == 0, padded[low + 1], mixed)


def resample_even(
    array: NDArray[np.float32], affine_ras: NDArray[np.float64], along_mm: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return slices at uneven distances, (slices, rows, columns), interpolated at their median distance."""
    places = np.asarray(along_mm)
    step_mm = float(np.median(np.diff(places)))
    count = int(np.floor(places[-1] / step_mm + 1e-6)) + 1
    wanted = np.minimum(np.arange(count) * step_mm, places[-1])
    low = np.clip(np.searchsorted(places, wanted, side="right") - 1, 0, len(places) - 2)
    weight = ((wanted - places[low]) / (places[low + 1] - places[low])).astype(np.float32)
    out = np.empty((count, *array.shape[1:]), np.float32)
    for k in range(count):
        out[k] = (
            array[low[k]]
            if weight[k] == 0
            else array[low[k]] * (1 - weight[k]) + array[low[k] + 1] * weight[k]
        )
    even = affine_ras.copy()
    even[:3, 2] *= step_mm / (places[-1] / (len(places) - 1))
    return out, even
