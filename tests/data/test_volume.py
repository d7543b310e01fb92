"""Spacing, axes and shape of a volume, from its affine."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.data.volume import Info, Volume


def volume(matrix):
    affine = np.eye(4)
    affine[:3, :3] = matrix
    return Volume(np.zeros((2, 3, 4, 5), np.float32), affine)


def test_spacing_is_the_length_of_each_axis():
    # A turn by the angle of a 3-4-5 triangle: 2 mm along X, 5 mm along Y, 1.5 mm along Z.
    turned = np.array([[1.2, -4.0, 0.0], [1.6, 3.0, 0.0], [0.0, 0.0, -1.5]])
    assert volume(turned).spacing_mm == pytest.approx((2.0, 5.0, 1.5))
    assert volume(np.eye(3)).shape == (3, 4, 5)


def test_axes_say_which_index_runs_right_front_and_up():
    # X runs up, Y to the left, Z to the front: right is Y, front is Z, up is X.
    matrix = np.array([[0.0, -1.0, 0.1], [0.1, 0.0, 2.0], [3.0, 0.0, 0.0]])
    assert volume(matrix).axes_ras == (1, 2, 0)


def test_two_axes_nearest_to_one_direction_have_no_order():
    matrix = np.array([[1.0, 0.9, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 1.0]])
    assert volume(matrix).axes_ras is None


def test_identities_are_neither_printed_nor_compared():
    assert Info(identities=("a",)) == Info()
    assert "identities" not in repr(Info(identities=("a",)))
