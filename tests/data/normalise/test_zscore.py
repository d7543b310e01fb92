"""Mean 0 and standard deviation 1, by hand."""

from __future__ import annotations

import numpy as np

from medfed.data.normalise.zscore import ZScore


def voxels(*values: float) -> np.ndarray:
    return np.array([[values]], np.float32)


def test_the_mean_becomes_0_and_a_standard_deviation_1() -> None:
    # 0, 2, 4, 6: mean 3, variance (9 + 1 + 1 + 9) / 4 = 5.
    np.testing.assert_allclose(
        ZScore().channel(voxels(0, 2, 4, 6)).ravel(), np.array([-3, -1, 1, 3]) / 5**0.5, rtol=1e-6
    )


def test_the_foreground_is_all_above_the_smallest_value() -> None:
    # 1, 3: mean 2, deviation 1. The smallest value, 0, is not counted, but mapped like the others.
    np.testing.assert_allclose(ZScore(foreground=True).channel(voxels(0, 1, 3)).ravel(), [-2, -1, 1])
    np.testing.assert_allclose(ZScore(foreground=True).channel(voxels(5, 5)).ravel(), [0, 0])


def test_it_clips_at_so_many_deviations() -> None:
    np.testing.assert_allclose(ZScore(clip=0.5).channel(voxels(1, 3)).ravel(), [-0.5, 0.5])


def test_values_far_from_zero_keep_their_digits() -> None:
    """In float32 the sum of a million values near 1e6 loses the digits that the deviation consists of."""
    values = np.tile(np.array([1e6 - 1, 1e6 + 1], np.float32), 500_000).reshape(100, 100, 100)
    np.testing.assert_allclose(ZScore().channel(values).reshape(-1)[:2], [-1, 1], atol=1e-6)
