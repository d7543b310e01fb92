"""Guarantees hold as often as they say, fail under shift if pooled alone, and are refused for few."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medfed.evaluation.conformal import (
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
    assert (first.failures[GRID.index(0.05)], first.failures[GRID.index(0.06)]) == (0, 1)
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
    found = with_confidence(RiskCurve.of([0.0] * 40), 0.9, 0.95)
    assert (found.threshold, found.failures) == (None, 40)
    assert (
        "40 of 40 patients fail at every threshold, at most 0 may for 90 % with 95 % confidence"
        in found.why_not
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
