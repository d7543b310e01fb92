"""Resampling axis by axis equals interpolation in float64, and rotated grids are resampled by MONAI."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from medfed.data import resample as module
from medfed.data.resample import axis_positions, resample

torch.set_num_threads(1)

SHAPE = (11, 7, 9)
AFFINE = np.array([[0.9, 0, 0, -20], [0, 2.0, 0, 7], [0, 0, 3.1, 100], [0, 0, 0, 1]])
TURNED = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def noise(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 300, (2, *shape)).astype(np.float32)


def oracle(array: np.ndarray, affine: np.ndarray, to: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resample by scipy in float64, at the position of each voxel on the other grid."""
    index = np.stack([*np.indices(shape), np.ones(shape)]).reshape(4, -1)
    at = (np.linalg.inv(affine) @ to @ index)[:3]
    at = np.clip(at, 0, np.array(array.shape[1:])[:, None] - 1)
    return np.stack([map_coordinates(c.astype(float), at, order=1).reshape(shape) for c in array])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_any_order_and_direction_of_axes(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    to = np.eye(4)
    to[:3, :3] = 0
    spacing = (1.3, 0.7, 4.0)
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        to[world, axis] = sign * spacing[axis]
    to[:3, 3] = [-16.3, 12.2, 113.0]
    array = noise()
    resampled = resample(array, AFFINE, to, (8, 10, 6), nearest=False)
    assert resampled.dtype == np.float32
    assert resampled.flags.c_contiguous
    assert axis_positions(AFFINE, to, SHAPE, (8, 10, 6)) is not None
    np.testing.assert_allclose(resampled, oracle(array, AFFINE, to, (8, 10, 6)), atol=2e-4)


def test_two_turned_grids_with_parallel_axes_are_parallel() -> None:
    affine = TURNED @ AFFINE
    to = affine @ np.diag([1.7, 0.4, 0.8, 1.0])
    assert axis_positions(affine, to, SHAPE, (6, 16, 10)) is not None
    resampled = resample(noise(), affine, to, (6, 16, 10), nearest=False)
    np.testing.assert_allclose(resampled, oracle(noise(), affine, to, (6, 16, 10)), atol=2e-4)


@pytest.mark.parametrize(
    "to", [TURNED @ AFFINE, AFFINE @ np.array([[1, 0, 0.01, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])]
)
def test_turned_and_sheared_grids_are_interpolated_in_three_dimensions(to: np.ndarray) -> None:
    assert axis_positions(AFFINE, to, SHAPE, SHAPE) is None
    resampled = resample(noise(), AFFINE, to, SHAPE, nearest=False)
    # MONAI's coordinates are float32.
    np.testing.assert_allclose(resampled, oracle(noise(), AFFINE, to, SHAPE), atol=0.05)


def test_monai_gives_the_same_but_for_its_rounding() -> None:
    to = AFFINE @ np.diag([1.3, 0.6, 0.5, 1.0])
    mine = resample(noise(), AFFINE, to, (9, 12, 17), nearest=False)
    np.testing.assert_allclose(mine, module._by_monai(noise(), AFFINE, to, (9, 12, 17), False), atol=0.05)


def test_the_nearest_voxel_keeps_the_type_and_ties_go_to_the_even_one() -> None:
    label = np.arange(8, dtype=np.uint8).reshape(1, 8, 1, 1)
    to = np.diag([2.0, 1, 1, 1])
    to[0, 3] = 0.5  # at 0.5, 2.5, 4.5, 6.5
    resampled = resample(label, np.eye(4), to, (4, 1, 1), nearest=True)
    assert resampled.dtype == np.uint8
    assert resampled.ravel().tolist() == [0, 2, 4, 6]
    to[0, 3] = 0.6
    assert resample(label, np.eye(4), to, (4, 1, 1), nearest=True).ravel().tolist() == [1, 3, 5, 7]


def test_beyond_the_grid_the_border_goes_on() -> None:
    array = np.array([5.0, 7.0], np.float32).reshape(1, 2, 1, 1)
    to = np.eye(4)
    to[0, 3] = -2
    resampled = resample(array, np.eye(4), to, (6, 1, 1), nearest=False)
    assert resampled.ravel().tolist() == [5, 5, 5, 7, 7, 7]


def test_the_same_grid_is_left_as_it_is_and_a_transposed_view_is_taken() -> None:
    view = noise((9, 7, 11)).transpose(0, 3, 2, 1)
    np.testing.assert_array_equal(resample(view, AFFINE, AFFINE, SHAPE, nearest=False), view)
    to = AFFINE @ np.diag([0.5, 1, 2, 1])
    np.testing.assert_array_equal(
        resample(view, AFFINE, to, (21, 7, 5), nearest=False),
        resample(view.copy(), AFFINE, to, (21, 7, 5), nearest=False),
    )
