"""What peers answer with a plausible number, or crash on: each is a value that is defined, or an
error with a reason.
"""

from __future__ import annotations

import numpy as np
import pytest

from medfed.errors import DataError, LabelError
from medfed.evaluation import classification, intervals, segmentation, survival


def test_a_constant_model_has_an_auroc_of_one_half_and_no_interval():
    """DeLong's variance is 0 there, and an interval from 0.5 to 0.5 would claim certainty."""
    found = classification.auroc([0.3] * 40, [0, 1] * 20, seed=0, draws=100)
    assert (found.value, found.low, found.high) == (0.5, None, None)
    assert found.note == "no interval: every patient is ranked alike"
    slope = classification.calibration([0.3] * 40, [0, 1] * 20).slope
    assert (slope.value, slope.note) == (None, "no slope: all probabilities are alike")


@pytest.mark.parametrize("targets", [[0, 3], [0, -1], [0, 0.5], [0, np.nan]])
def test_a_target_that_is_no_class_is_refused_and_not_counted_as_another(targets):
    probabilities = [[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]]
    with pytest.raises(DataError, match="whole numbers from 0 to 2"):
        classification.measure(probabilities, targets, ["a", "b", "c"], seed=0, draws=10)
    with pytest.raises(DataError, match="whole numbers from 0 to 2"):
        classification.temperature(probabilities, targets)


def test_temperatures_and_thresholds_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="at least one of each"):
        classification.temperature([], [])
    with pytest.raises(DataError, match="expected a number above 0"):
        classification.rescaled([0.2, 0.8], 0.0)
    with pytest.raises(DataError, match="between 0 and 1; apply softmax"):
        classification.temperature([0.2, 1.2], [0, 1])
    with pytest.raises(DataError, match="from 0 to below 1"):
        classification.net_benefit([0.2, 0.8], [0, 1], [0.5, 1.0])
    with pytest.raises(DataError, match="net benefit of no patients"):
        classification.net_benefit([], [], [0.5])


def test_beyond_the_last_follow_up_a_brier_score_is_undefined():
    times, events = [1.0, 2.0, 3.0, 4.0], [1, 0, 1, 0]
    for at in (4.0, 9.0):
        found = survival.measure([1, 2, 3, 4], times, events, seed=0, curves={at: [0.5] * 4}, draws=10)
        assert found[f"brier@{at:g}"].value is None
        assert found[f"brier@{at:g}"].note == "nobody was followed beyond this time"
    with pytest.raises(DataError, match=r"events must be 0 \(censored\) or 1"):
        survival.c_index_of([1, 2], [1.0, 2.0], [2, 0])


def test_tolerances_spacings_and_shapes_that_cannot_be_are_refused():
    mask = np.zeros((3, 3, 3), int)
    for tolerance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(LabelError, match="tolerance_mm: found"):
            segmentation.measure(mask, mask, (1, 1, 1), {1: "a"}, tolerance)
    with pytest.raises(LabelError, match="all three must be above zero"):
        segmentation.spacing_of(np.zeros((4, 4)))
    with pytest.raises(LabelError, match="both must be on one grid"):
        segmentation.dice(np.ones((2, 2), bool), np.ones((2, 3), bool))
    # Integer masks: 1 & 2 is 0 bit by bit, and an overlap of nothing.
    assert segmentation.dice(np.array([2, 1, 0]), np.array([1, 2, 0])) == 1.0


def test_shares_and_p_values_that_cannot_be_are_refused():
    assert intervals.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(DataError, match="3 of 2"):
        intervals.wilson(3, 2)
    with pytest.raises(DataError, match="p values must be between 0 and 1"):
        intervals.holm([0.01, float("nan")])
    assert np.isnan(intervals.quantile_of([], 0.5)(np.ones((1, 0)))[0])


def test_everything_of_nobody_is_a_reason_and_never_a_number():
    for classes in (["a", "b"], ["a", "b", "c"]):
        found = classification.measure(np.zeros((0, len(classes))), [], classes, seed=0, draws=10)
        assert all(one.interval.value is None and one.interval.note for one in found)
    found = survival.measure([], [], [], seed=0, draws=10)
    assert found["c_index"].value is None
    empty = np.zeros((0, 4, 4), int)
    for one in segmentation.measure(empty, empty, (1, 1, 1), {1: "a"}):
        assert one.value in (None, 0.0)
        assert one.value is not None or one.note
