"""The noise has the distribution it says, and cannot be repeated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from medfed.dp import noise


def test_it_is_gaussian_of_the_deviation_asked_for():
    drawn = noise.gaussian((400_001,), 2.5)
    assert drawn.dtype == torch.float64
    values = drawn.numpy()
    count = len(values)
    # Five standard errors of each moment: one draw in a million fails by chance.
    assert abs(values.mean()) < 5 * 2.5 / math.sqrt(count)
    assert abs(values.var() / 2.5**2 - 1) < 5 * math.sqrt(2 / count)
    assert abs(stats.skew(values)) < 5 * math.sqrt(6 / count)
    assert abs(stats.kurtosis(values)) < 5 * math.sqrt(24 / count)
    assert stats.kstest(values / 2.5, "norm").pvalue > 1e-6


def test_values_beside_one_another_and_far_apart_are_unrelated():
    values = noise.gaussian((300_000,), 1.0).numpy()
    for lag in (1, 2, noise.BLOCK):
        related = float(np.corrcoef(values[:-lag], values[lag:])[0, 1])
        assert abs(related) < 5 / math.sqrt(len(values) - lag)


def test_a_seed_changes_nothing():
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the point of the test
        drawn.append(noise.gaussian((8,), 1.0))
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)])
def test_shapes(shape):
    assert noise.gaussian(shape, 1.0).shape == shape


def test_uniform_numbers_are_never_zero_and_may_be_one(monkeypatch):
    monkeypatch.setattr(noise.os, "urandom", lambda count: b"\x00" * (count // 2) + b"\xff" * (count // 2))
    low, high = noise._uniform(2)
    assert low == 2.0**-53
    assert high == 1.0
    assert bool(torch.isfinite(noise.gaussian((4,), 1.0)).all())


def test_each_is_drawn_by_itself_with_the_chance_given():
    counts = np.zeros(20)
    sizes = []
    for _ in range(3000):
        drawn = noise.chosen(20, 0.3)
        counts[drawn] += 1
        sizes.append(len(drawn))
    # Binomial: 900 of 3000 with standard deviation 25 each; sizes 6 with variance 20 * 0.3 * 0.7 = 4.2.
    assert np.all(np.abs(counts - 900) < 5 * 25.1)
    assert abs(np.mean(sizes) - 6) < 5 * math.sqrt(4.2 / 3000)
    assert abs(np.var(sizes) - 4.2) < 0.8
    assert noise.chosen(5, 1.0) == [0, 1, 2, 3, 4]
