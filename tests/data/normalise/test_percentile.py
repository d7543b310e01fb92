"""Two percentiles become -1 and 1, by hand and against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.data.normalise.percentile import Percentile, _counted_percentile
from medfed.errors import DataError


def test_values_between_the_percentiles_are_mapped_and_the_others_clipped() -> None:
    # 0 to 100: the 10th percentile is 10, the 90th 90; 50 lies in the middle, 0 and 100 are clipped.
    values = np.arange(101, dtype=np.float32).reshape(1, 1, -1)
    normalised = Percentile(low=10, high=90).channel(values).ravel()
    np.testing.assert_allclose(normalised[[0, 10, 50, 70, 90, 100]], [-1, -1, 0, 0.5, 1, 1], atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limits", [(0.5, 99.5), (0, 100), (33.3, 60.1)])
def test_whole_numbers_are_counted_with_the_same_result_as_sorting(
    seed: int, limits: tuple[float, float]
) -> None:
    """Pictures are counted, not sorted; numpy's own percentiles are the independent path."""
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 9 * 10**seed, (7, 11, 13)).astype(np.float32)
    low, high = np.percentile(values, limits)
    expected = (values.clip(low, high) - low) / (high - low) * 2 - 1
    np.testing.assert_array_equal(Percentile(*limits).channel(values), expected.astype(np.float32))


def test_a_counted_percentile_is_numpys_to_the_last_bit() -> None:
    values = np.random.default_rng(0).integers(0, 60_000, 997).astype(np.float32)
    counts = np.bincount(values.astype(int))
    for percent in np.linspace(0, 100, 201):
        assert _counted_percentile(np.cumsum(counts), percent) == np.percentile(values, percent)


@pytest.mark.parametrize(
    ("greatest", "percent", "by_hand", "from_the_other_end"),
    [(7, 60, 7 - 7 * (1 - 0.6), 0 + 7 * 0.6), (1, 1, 0 + 1 * 0.01, 1 - 1 * (1 - 0.01))],
    ids=["nearer to the upper value", "nearer to the lower value"],
)
def test_a_counted_percentile_is_reckoned_from_the_nearer_value_as_numpys_is(
    greatest: int, percent: float, by_hand: float, from_the_other_end: float
) -> None:
    """Of two voxels, 0 and `greatest`, where the two ends give results that differ in their last bit."""
    counts = np.bincount([0, greatest])
    assert by_hand != from_the_other_end
    assert _counted_percentile(np.cumsum(counts), percent) == by_hand
    assert np.percentile(np.array([0, greatest], np.float32), np.float64(percent)) == by_hand


@pytest.mark.parametrize("odd", [0.5, 1.5, -1.0, 70_000.0])
def test_one_voxel_that_cannot_be_counted_is_not_lost(odd: float) -> None:
    """It stands beyond the voxels that are looked at first, and decides the range here."""
    values = np.full((11, 11, 11), 1.0, np.float32)
    values[-1, -1, -1] = odd
    normalised = Percentile(low=0, high=100).channel(values)
    assert normalised[-1, -1, -1] == (1 if odd > 1 else -1)
    assert normalised[0, 0, 0] == (-1 if odd > 1 else 1)


def test_a_range_of_nothing_is_a_constant() -> None:
    assert not Percentile().channel(np.full((2, 2, 2), 7.0, np.float32)).any()
    assert not Percentile().channel(np.full((2, 2, 2), 7.5, np.float32)).any()


@pytest.mark.parametrize("highest", [200.0, 0.75])
def test_a_mask_of_few_voxels_keeps_its_structure(highest: float) -> None:
    """One voxel of 1,000 lies above the 99.5th percentile, which is the 0.5th, too: 0."""
    values = np.zeros((10, 10, 10), np.float32)
    values[5, 5, 5] = highest
    normalised = Percentile().channel(values)
    assert normalised[5, 5, 5] == 1
    assert (normalised == -1).sum() == 999


def test_low_above_high_is_refused() -> None:
    with pytest.raises(
        DataError, match="normalise 'percentile': low is 60, high is 40; low must lie below high"
    ):
        Percentile(low=60, high=40)
