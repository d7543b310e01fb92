"""Landmarks of a histogram, by hand on uniform values."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.data.normalise.nyul import PERCENTILES, Nyul, percentiles
from medfed.errors import DataError

LANDMARKS = tuple(p / 50 - 1 for p in PERCENTILES)
UNIFORM = np.linspace(100, 200, 1001, dtype=np.float32).reshape(1, 1, -1)


def test_two_gains_are_put_on_one_scale() -> None:
    kind = Nyul(landmarks=LANDMARKS, foreground=False)
    # The p-th percentile of uniform values is 100 + p, which goes to p / 50 - 1; beyond the ends is clipped.
    np.testing.assert_allclose(
        kind.channel(UNIFORM)[0, 0, [0, 10, 250, 500, 900, 990, 1000]],
        [-0.98, -0.98, -0.5, 0, 0.8, 0.98, 0.98],
        atol=1e-3,
    )
    np.testing.assert_allclose(kind.channel(UNIFORM * 7 + 3), kind.channel(UNIFORM), atol=1e-4)


def test_the_foreground_is_all_above_the_mean() -> None:
    # Above the mean of 150 the values are uniform up to 200: their p-th percentile is 150 + p / 2.
    np.testing.assert_allclose(percentiles(UNIFORM, True), 150 + np.array(PERCENTILES) / 2, atol=0.1)
    np.testing.assert_allclose(percentiles(UNIFORM, False), 100 + np.array(PERCENTILES), atol=1e-3)


def test_of_equal_percentiles_the_last_landmark_holds() -> None:
    """In a dark image with 50 % zeros, the percentiles up to the 50th are all 0."""
    values = np.concatenate([np.zeros(1000), np.linspace(0, 100, 1001)]).astype(np.float32).reshape(1, 1, -1)
    normalised = Nyul(landmarks=LANDMARKS, foreground=False).channel(values)
    assert normalised[0, 0, 0] == pytest.approx(0.0, abs=0.01)


def test_a_constant_is_0() -> None:
    assert not Nyul(landmarks=LANDMARKS).channel(np.full((2, 2, 2), 7.0, np.float32)).any()


def test_landmarks_that_fall_or_are_too_few_are_refused() -> None:
    with pytest.raises(
        DataError, match="3 landmarks; expected 11, one for each of the percentiles 1, 10, 20"
    ):
        Nyul(landmarks=(-1, 0, 1))
    with pytest.raises(DataError, match="the landmarks fall; they must rise"):
        Nyul(landmarks=(*range(10), 3.0))
