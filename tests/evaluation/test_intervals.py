"""Intervals cover what they say, patients are the unit, and small groups cannot be had by subtraction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from medfed.evaluation.intervals import (
    Interval,
    Resampling,
    holm,
    is_wide,
    mean_of,
    quantile_of,
    resamples,
    suppressed_groups,
    wilson,
)


def coverage(draw, truth, patients, runs=600, kind="bca", strata=None):
    """The share of `runs` samples whose interval holds the truth."""
    generator = np.random.default_rng(5)
    held = 0
    for run in range(runs):
        result = Resampling(run, strata, draws=500).interval(mean_of(draw(generator)), patients, kind=kind)
        held += result.low <= truth <= result.high
    return held / runs


@pytest.mark.parametrize("kind", ["bca", "percentile"])
def test_a_95_percent_interval_of_16_patients_covers_95_percent(kind):
    # Three binomial standard errors of 600 runs are 0.027; the issue asks for 93 to 97 %.
    assert 0.93 <= coverage(lambda generator: generator.normal(0.8, 0.1, 16), 0.8, 16, kind=kind) <= 0.97


def test_it_covers_on_skewed_values_such_as_dice():
    # Beta(8, 2) is skewed as Dice is; its mean is 8 / 10.
    assert 0.93 <= coverage(lambda generator: generator.beta(8, 2, 40), 0.8, 40) <= 0.97


def test_it_covers_when_hospitals_of_different_level_are_pooled():
    strata = ["north"] * 10 + ["south"] * 20
    truth = (10 * 0.6 + 20 * 0.9) / 30

    def draw(generator):
        return np.concatenate([generator.normal(0.6, 0.1, 10), generator.normal(0.9, 0.02, 20)])

    assert 0.93 <= coverage(draw, truth, 30, strata=strata) <= 0.97
    # Without the strata the difference of the hospitals, which is not chance, would widen the interval.
    values = draw(np.random.default_rng(0))
    plain, within = (Resampling(1, given).interval(mean_of(values), 30) for given in (None, strata))
    assert plain.high - plain.low > 1.4 * (within.high - within.low)


def test_wilson_covers_and_equals_statsmodels():
    generator = np.random.default_rng(1)
    held = [
        wilson(int(k), 40)[0] <= 0.85 <= wilson(int(k), 40)[1] for k in generator.binomial(40, 0.85, 4000)
    ]
    assert 0.93 <= np.mean(held) <= 0.97
    for successes, trials in [(0, 7), (7, 7), (3, 9), (499, 1000)]:
        assert wilson(successes, trials) == pytest.approx(
            proportion_confint(successes, trials, method="wilson"), abs=1e-12
        )


def test_bca_of_a_large_sample_equals_scipys():
    values = np.random.default_rng(2).gamma(2.0, 1.0, 400)
    ours = Resampling(3, draws=20000).interval(mean_of(values), 400)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="BCa", rng=4).confidence_interval
    # Both are Monte Carlo; the t and the n / (n - 1) of 400 patients are below half a percent of the width.
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_the_same_seed_gives_the_same_interval_and_the_order_of_hospitals_none():
    values = np.random.default_rng(0).random(30)
    strata = ["b"] * 12 + ["a"] * 18
    assert Resampling(9).interval(mean_of(values), 30) == Resampling(9).interval(mean_of(values), 30)
    first = Resampling(9, strata).interval(mean_of(values), 30)
    swapped = np.concatenate([values[12:], values[:12]])
    second = Resampling(9, strata[12:] + strata[:12]).interval(mean_of(swapped), 30)
    assert (first.low, first.high) == pytest.approx((second.low, second.high), rel=1e-12)


def test_every_resample_draws_each_hospital_in_full():
    strata = ["a", "b"] * 5 + ["b"]
    counts = np.concatenate(list(resamples(strata, 11, 50, seed=0)))
    assert counts.shape == (50, 11)
    assert (counts[:, 0:10:2].sum(axis=1) == 5).all()
    assert (counts.sum(axis=1) == 11).all()


def test_hospitals_of_one_or_two_patients_do_not_make_an_interval_narrow():
    # Five patients of four hospitals: within hospitals only one pair would vary.
    strata = ["a", "b", "c", "d", "d"]
    assert 0.83 <= coverage(lambda generator: generator.normal(0.7, 0.1, 5), 0.7, 5, strata=strata) <= 0.98
    assert (
        Resampling(0).interval(mean_of([0.1, 0.5, 0.4, 0.7, 0.2]), 5).note
        == "of 5 patients, so likely too narrow"
    )


def test_pieces_do_not_change_the_numbers(monkeypatch):
    whole = np.concatenate(list(resamples(None, 7, 20, seed=4)))
    monkeypatch.setattr("medfed.evaluation.intervals.MAX_COUNTS", 7 * 3)
    assert (np.concatenate(list(resamples(None, 7, 20, seed=4))) == whole).all()


def test_degenerate_samples_have_no_interval_and_a_reason():
    assert Resampling(1).interval(mean_of([]), 0).note == "no patients"
    assert Resampling(1).interval(mean_of([0.5]), 1)[:3] == (0.5, None, None)
    alike = Resampling(1).interval(mean_of([1.0] * 9), 9)
    assert (alike.value, alike.low, alike.note) == (1.0, None, "no interval: all patients alike")
    assert Resampling(1).interval(mean_of([np.nan] * 3), 3).note == "undefined on these patients"


def test_missing_values_are_left_out_of_the_mean():
    assert mean_of([1.0, np.nan, 3.0])(np.array([[1.0, 5.0, 1.0], [2.0, 0.0, 0.0]])).tolist() == [2.0, 1.0]


def test_the_median_counts_what_was_missed_as_infinite():
    median = quantile_of([4.0, np.inf, 1.0, 2.0], 0.5)
    assert median(np.ones((1, 4)))[0] == 3.0
    assert median(np.array([[1.0, 2.0, 1.0, 0.0]]))[0] == np.inf
    assert median(np.array([[0.0, 1.0, 1.0, 1.0]]))[0] == 2.0


def test_holm_equals_statsmodels():
    p_values = np.random.default_rng(0).random(12) ** 3
    assert holm(list(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_wide_intervals_are_told():
    assert is_wide(Interval(0.7, 0.5, 0.9, 9, ""))
    assert not is_wide(Interval(0.8, 0.75, 0.85, 9, ""))
    assert is_wide(Interval(4.0, 2.0, 6.0, 9, ""), 0.0, None)
    assert not is_wide(Interval(4.0, 3.0, 5.0, 9, ""), 0.0, None)
    assert not is_wide(Interval(0.01, -1.0, 1.0, 9, ""), None, None)


def test_a_small_group_is_hidden_together_with_another():
    assert suppressed_groups({"F": 40, "M": 30}, 5) == set()
    assert suppressed_groups({"F": 40, "M": 3}, 5) == {"F", "M"}
    assert suppressed_groups({"a": 40, "b": 3, "c": 9}, 5) == {"b", "c"}
    # Two hidden groups of one patient each could still be had as a sum of two: more must go.
    assert suppressed_groups({"a": 40, "b": 1, "c": 1, "d": 9}, 5) == {"b", "c", "d"}
    assert suppressed_groups({"a": 40, "b": 0}, 5) == set()


@pytest.mark.parametrize("sign, side", [(1.0, "above"), (-1.0, "below")])
def test_a_statistic_that_chance_can_only_raise_has_no_interval(sign, side):
    """The distance of a mean from 0 is 0 in the sample, and above in each resample: BCa shrank to a point."""
    values = np.random.default_rng(1).normal(size=40)
    values -= values.mean()

    def distance(counts):
        return sign * np.abs(counts @ values) / counts.sum(axis=1)

    result = Resampling(3, None, draws=200).interval(distance, 40)
    assert (result.low, result.high) == (None, None)
    assert result.value == pytest.approx(0.0, abs=1e-12)
    assert result.note == f"no interval: nearly all resamples lie {side} this value"


def test_a_calibration_error_lies_in_its_interval_or_has_none():
    generator = np.random.default_rng(2)
    seen = set()
    for seed in range(30):
        p = generator.random(60)
        y = generator.random(60) < p  # well calibrated, so the error is chance's
        bins = np.minimum((p * 10).astype(int), 9)
        gaps = np.stack([np.where(bins == one, p - y, 0.0) for one in range(10)])

        def error(counts, gaps=gaps):
            return np.abs(counts @ gaps.T).sum(axis=1) / counts.sum(axis=1)

        result = Resampling(seed, None, draws=200).interval(error, 60)
        seen.add(result.low is None)
        assert result.low is None or result.low <= result.value <= result.high
    assert True in seen


def test_a_proportion_of_all_or_none_is_the_end_of_its_interval():
    assert all(wilson(n, n)[1] == 1.0 and wilson(0, n)[0] == 0.0 for n in range(1, 300))
