"""Guarantees hold as often as they say, fail under shift if pooled alone, and are refused for few."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medfed.evaluation.conformal import (
    CUTS,
    GRID,
    Guarantee,
    RiskCurve,
    least_of,
    on_average,
    with_confidence,
)

SIMULATIONS = 500


def scores(generator, patients, shift=0.0):
    """Scores of patients of one hospital: a share of t fails at threshold t, of a shifted one more."""
    return np.clip(generator.random(patients) - shift, 0.0, 1.0)


def test_a_curve_counts_who_fails_and_curves_add_up():
    first, second = RiskCurve.of([0.05, 0.5]), RiskCurve.of([0.015])
    assert (first.losses[GRID.index(0.05)], first.losses[GRID.index(0.06)]) == (0, 1)
    assert first + second == RiskCurve.of([0.5, 0.015, 0.05])
    with pytest.raises(ValueError, match="no finite score"):
        RiskCurve.of([0.5, float("nan")])


def test_the_threshold_by_hand():
    """Of 61 patients 2 may fail: P(Bin(61, 0.1) <= 2) is 0.0491, <= 3 is 0.129."""
    values = np.sort(np.r_[0.101, 0.202, 0.303, np.linspace(0.5, 0.99, 58)])
    assert with_confidence(RiskCurve.of(values), 0.9, 0.95) == Guarantee(0.30, 61, 2)
    assert stats.binom.cdf(2, 61, 0.1) == pytest.approx(0.9**61 + 6.1 * 0.9**60 + 18.3 * 0.9**59)
    # On average (failures + 1) / 62 may be 0.1: 5 of them, up to the sixth score.
    assert on_average(RiskCurve.of(values), 0.9) == Guarantee(0.51, 61, 5)


@pytest.mark.parametrize(
    ("share", "confidence", "needed"), [(0.9, 0.95, 29), (0.95, 0.95, 59), (0.8, 0.9, 11)]
)
def test_too_few_patients_have_no_guarantee_and_are_told_how_many_are_needed(share, confidence, needed):
    enough = with_confidence(RiskCurve.of([0.9] * needed), share, confidence)
    assert (enough.threshold, enough.failures) == (0.9, 0)
    few = with_confidence(RiskCurve.of([0.9] * (needed - 1)), share, confidence)
    assert few.threshold is None
    assert few.why_not.startswith(f"no guarantee: {needed - 1} validation patients, {needed} are needed for ")


def test_on_average_nine_patients_are_needed_for_nine_tenths():
    assert on_average(RiskCurve.of([0.9] * 9), 0.9).threshold == 0.9
    assert (
        "8 validation patients, 9 are needed for 90 % on average"
        in on_average(RiskCurve.of([0.9] * 8), 0.9).why_not
    )


def test_a_model_that_never_finds_it_gets_no_threshold_of_zero():
    result = with_confidence(RiskCurve.of([0.0] * 40), 0.9, 0.95)
    assert (result.threshold, result.failures) == (None, 40)
    assert (
        "40 of 40 patients fail at every threshold, at most 0 may for 90 % with 95 % confidence"
        in result.why_not
    )


def test_the_confidence_is_kept_in_500_simulations_and_is_not_given_away():
    """At 61 patients the exact level is 95.1 %; a failure rate of t at threshold t is known."""
    generator = np.random.default_rng(0)
    chosen = [with_confidence(RiskCurve.of(scores(generator, 61)), 0.9, 0.95) for _ in range(SIMULATIONS)]
    # A threshold of the grid lies up to 0.01 below the patient's score, which only makes it safer.
    held = np.mean([(one.threshold or 0.0) <= 0.1 for one in chosen])
    finer = np.mean([np.sort(scores(generator, 61))[2] <= 0.1 for _ in range(SIMULATIONS)])
    assert held >= 0.93
    assert finer == pytest.approx(0.951, abs=0.02)
    assert held == pytest.approx(0.951, abs=0.035)


def test_the_expected_share_is_kept_within_two_points_in_500_simulations():
    generator = np.random.default_rng(1)
    risks = [on_average(RiskCurve.of(scores(generator, 99)), 0.9).threshold for _ in range(SIMULATIONS)]
    assert 0.9 <= 1 - np.mean(risks) <= 0.92


def test_under_shift_the_pooled_threshold_fails_where_each_hospitals_own_and_the_least_hold():
    """South's lesions look fainter: at threshold t a share of t / 0.4 fails there."""
    generator, kept = np.random.default_rng(2), {"pooled": [], "own": [], "least": []}
    for _ in range(SIMULATIONS):
        north, south = scores(generator, 200), scores(generator, 61) * 0.4
        curves = RiskCurve.of(north), RiskCurve.of(south)
        pooled = with_confidence(curves[0] + curves[1], 0.9, 0.95).threshold
        own = [with_confidence(curve, 0.9, 0.95) for curve in curves]
        for name, threshold in (
            ("pooled", pooled),
            ("own", own[1].threshold),
            ("least", least_of(own).threshold),
        ):
            kept[name].append((threshold or 0.0) / 0.4 <= 0.1)
    assert np.mean(kept["pooled"]) < 0.5
    assert np.mean(kept["own"]) >= 0.93
    assert np.mean(kept["least"]) >= 0.93


def test_the_least_holds_at_each_hospital_or_there_is_none():
    assert least_of([Guarantee(0.3, 40), Guarantee(0.2, 30)]) == Guarantee(0.2, 70)
    none = least_of([Guarantee(0.3, 40), Guarantee(None, 8, why_not="few")])
    assert (none.threshold, none.why_not) == (None, "no guarantee: 1 of 2 hospitals have none")


def test_what_leaves_by_hand():
    """Three fail below .2 and one at .63: with 3 together the first three have a cell, the one has not."""
    values = [0.11, 0.12, 0.13, 0.63, *[0.97] * 8]
    curve = RiskCurve.of(values).protected(3)
    at = curve.at_cuts
    # .5 parts 3 from 9; .1 parts none; .9 would leave one in .5 to .9, as would .7; .6 parts none.
    assert (at[0.1], at[0.15], at[0.2], at[0.5], at[0.6]) == (0, 3, 3, 3, 3)
    assert (at[0.65], at[0.9], at[0.99]) == (12, 12, 12)
    assert curve.patients == 12
    # Between two cuts the next one's bound holds.
    assert curve.losses[GRID.index(0.11)] == at[0.15]


@pytest.mark.parametrize("smallest", [1, 3, 5, 10])
def test_what_leaves_bounds_the_risk_and_never_steps_by_fewer_than_the_smallest_group(smallest):
    generator = np.random.default_rng(smallest)
    for _ in range(100):
        exact = RiskCurve.of(generator.beta(2, 1, generator.integers(smallest, 60)))
        sent = exact.protected(smallest)
        steps = np.diff([0.0, *sent.at_cuts.values(), sent.patients])
        assert all(step == 0 or step >= smallest for step in steps)
        assert all(bound >= known for bound, known in zip(sent.losses, exact.losses, strict=True))
        if smallest == 1:
            assert sent.at_cuts == exact.at_cuts


def test_curves_that_left_add_up_to_bounds_of_the_pooled_patients_and_keep_the_confidence():
    generator, held, least = np.random.default_rng(3), [], []
    for _ in range(SIMULATIONS):
        curves = [RiskCurve.of(scores(generator, n)).protected(5) for n in (150, 250)]
        held.append((with_confidence(curves[0] + curves[1], 0.9, 0.95).threshold or 0.0) <= 0.1)
        least.append((with_confidence(curves[0], 0.9, 0.95).threshold or 0.0) <= 0.1)
    assert min(np.mean(held), np.mean(least)) >= 0.95 - 0.02


def test_the_share_of_voxels_missed_is_kept_within_two_points_in_500_simulations():
    """A patient's share missed at threshold t is t to the power of an exponent; its mean is known."""
    generator, grid = np.random.default_rng(4), np.asarray(GRID)

    def chosen(patients, sent=False):
        curve = RiskCurve.of_losses(grid ** generator.uniform(0.5, 2.0, (patients, 1)))
        threshold = on_average(curve.rounded_up() if sent else curve, 0.9).threshold or 0.0
        # The integral of t**a over a from .5 to 2, divided by 1.5.
        return (threshold**2 - threshold**0.5) / np.log(threshold) / 1.5 if threshold else 0.0

    exact = [chosen(60) for _ in range(SIMULATIONS)]
    sent = [chosen(60, sent=True) for _ in range(SIMULATIONS)]
    assert 0.9 <= 1 - np.mean(exact) <= 0.92
    assert 1 - np.mean(sent) >= 1 - np.mean(exact)


def test_means_of_shares_leave_rounded_up():
    """One of 40 patients misses .5 of the voxels from .3 on: the mean .0125 leaves as .02."""
    losses = np.zeros((40, len(GRID)))
    losses[0, GRID.index(0.3) :] = 0.5
    at = RiskCurve.of_losses(losses).rounded_up().at_cuts
    assert (at[0.25], at[0.3], at[0.99]) == (0.0, pytest.approx(0.8), pytest.approx(0.8))


def test_a_curve_that_contradicts_itself_is_none():
    fine = dict.fromkeys(CUTS, 3.0)
    assert RiskCurve.of_cuts(5, fine) is not None
    falling, lacking = {**fine, 0.99: 2.0}, dict.fromkeys(CUTS[1:], 3.0)
    for losses in (falling, lacking, {**fine, 0.99: 6.0}, {**fine, 0.01: -1.0}, {**fine, 0.99: float("nan")}):
        assert RiskCurve.of_cuts(5, losses) is None
