"""Bins, quantiles and the suppression of small bins, by hand and for any histogram."""

from __future__ import annotations

import random

import numpy as np
import pytest

from medfed.data.histogram import (
    bin_to_intensity,
    bin_to_length,
    intensity_bins,
    length_bin,
    quantile,
    suppress_small_bins,
)
from medfed.errors import DataError


def test_bins_and_values_are_inverse() -> None:
    values = np.array([-1024.0, -3.4, -0.5, 0.0, 7.6, 3071])
    assert intensity_bins(values, "hu").tolist() == [-1024, -3, 0, 0, 8, 3071]
    assert intensity_bins(np.array([1e9, -1e9]), "hu").tolist() == [3071, -1024]
    for value in (0.013, 1.0, 317.0, 4.2e6, -55.5):
        number = int(intensity_bins(np.array([value]), "relative")[0])
        assert bin_to_intensity(number, "relative") == pytest.approx(value, rel=0.0058)
    assert intensity_bins(np.array([0.0]), "relative").tolist() == [0]
    for value in (0.7, 1.0, 5.0, 512.0):
        assert bin_to_length(length_bin(value)) == pytest.approx(value, rel=0.0029)


def test_pooled_moves_small_bins_inward_by_hand() -> None:
    # From the left 1 + 2 make 3 in bin 2; from the right 1 alone is too few and joins the median's bin, 5.
    assert suppress_small_bins({1: 1, 2: 2, 5: 20, 9: 1}, 3) == {2: 3, 5: 21}
    assert suppress_small_bins({1: 1, 2: 1}, 3) == {}
    # The fourth of eight is in bin 1, the median's: 2 joins it.
    assert suppress_small_bins({1: 4, 2: 1, 8: 3}, 3) == {1: 5, 8: 3}
    # The fourth of seven is in bin 2, which is too small itself: it joins the nearest that isn't.
    assert suppress_small_bins({1: 3, 2: 1, 8: 3}, 3) == {1: 4, 8: 3}


def test_pooled_keeps_totals_and_tells_no_small_bin_whatever_comes() -> None:
    draw = random.Random(4)
    for _ in range(300):
        counts = {draw.randrange(-20, 20): draw.randrange(1, 9) for _ in range(draw.randrange(1, 25))}
        fewest = draw.randrange(1, 12)
        result = suppress_small_bins(counts, fewest)
        assert all(count >= fewest for count in result.values())
        assert sum(result.values()) == (sum(counts.values()) if sum(counts.values()) >= fewest else 0)


def test_quantile_by_hand() -> None:
    counts = {-5: 1, 0: 2, 7: 1}
    assert [quantile(counts, share) for share in (0.25, 0.5, 0.75, 1)] == [-5, 0, 0, 7]
    with pytest.raises(DataError, match="histogram is empty"):
        quantile({}, 0.5)
