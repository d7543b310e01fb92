"""What peers answer with a plausible number, or crash on: each is a value that is defined, or an
error with a reason.
"""

from __future__ import annotations

import numpy as np
import pytest

from medfed.errors import DataError, LabelError
from medfed.evaluation import calibration, intervals
from medfed.evaluation.classification import delong
from medfed.evaluation.groups import estimates
from medfed.evaluation.intervals import Resampling
from medfed.evaluation.metrics import (
    ClassGroup,
    SurvivalGroup,
    measure_masks,
)
from medfed.evaluation.patients import SurvivalPredictions
from medfed.evaluation.segmentation import dice, spacing_of
from medfed.evaluation.survival import c_index_of


def survival_of(risks, times, events, curves=None):
    arrays = (np.array(risks, float), np.array(times, float), np.array(events, bool))
    predictions = SurvivalPredictions(*arrays, {at: np.array(some) for at, some in (curves or {}).items()})
    group = SurvivalGroup(predictions, Resampling(0, draws=10))
    return {one.metric: one.interval for one in estimates(group)}


def test_a_constant_model_has_an_auroc_of_one_half_and_no_interval():
    """DeLong's variance is 0 there, and an interval from 0.5 to 0.5 would claim certainty."""
    comparison = delong([0.3] * 40, [0, 1] * 20)
    assert (comparison.value, comparison.low, comparison.high) == (0.5, None, None)
    assert comparison.note == "no interval: every patient is ranked equally"
    slope = calibration.calibration([0.3] * 40, [0, 1] * 20).slope
    assert (slope.value, slope.note) == (None, "no slope: all probabilities are alike")


@pytest.mark.parametrize("targets", [[0, 3], [0, -1], [0, 0.5], [0, np.nan]])
def test_a_target_that_is_no_class_is_refused_and_not_counted_as_another(targets):
    probabilities = [[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]]
    with pytest.raises(DataError, match="whole numbers from 0 to 2"):
        ClassGroup.of(probabilities, targets, ["a", "b", "c"], Resampling(0))
    with pytest.raises(DataError, match="whole numbers from 0 to 2"):
        calibration.temperature(probabilities, targets)


def test_beyond_the_last_follow_up_a_brier_score_is_undefined():
    times, events = [1.0, 2.0, 3.0, 4.0], [1, 0, 1, 0]
    for at in (4.0, 9.0):
        survival = survival_of([1, 2, 3, 4], times, events, {at: [0.5] * 4})
        assert survival[f"brier@{at:g}"].value is None
        assert survival[f"brier@{at:g}"].note == "nobody was followed beyond this time"
    with pytest.raises(DataError, match=r"events must be 0 \(censored\) or 1"):
        c_index_of([1, 2], [1.0, 2.0], [2, 0])


def test_tolerances_spacings_and_shapes_that_cannot_be_are_refused():
    mask = np.zeros((3, 3, 3), int)
    for tolerance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(LabelError, match="tolerance_mm: found"):
            measure_masks(mask, mask, (1, 1, 1), {1: "a"}, tolerance)
    with pytest.raises(LabelError, match="all three must be positive"):
        spacing_of(np.zeros((4, 4)))
    with pytest.raises(LabelError, match="both must be on the same grid"):
        dice(np.ones((2, 2), bool), np.ones((2, 3), bool))
    # Integer masks: 1 & 2 is 0 bit by bit, and an overlap of nothing.
    assert dice(np.array([2, 1, 0]), np.array([1, 2, 0])) == 1.0


def test_shares_and_p_values_that_cannot_be_are_refused():
    assert intervals.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(DataError, match="3 of 2"):
        intervals.wilson(3, 2)
    with pytest.raises(DataError, match="p values must be between 0 and 1"):
        intervals.holm([0.01, float("nan")])
    assert np.isnan(intervals.quantile_of([], 0.5)(np.ones((1, 0)))[0])


def test_everything_of_nobody_is_a_reason_and_never_a_number():
    for classes in (["a", "b"], ["a", "b", "c"]):
        result = estimates(ClassGroup.of(np.zeros((0, len(classes))), [], classes, Resampling(0, draws=10)))
        assert all(one.interval.value is None and one.interval.note for one in result)
    result = survival_of([], [], [])
    assert result["c_index"].value is None
    empty = np.zeros((0, 4, 4), int)
    for one in measure_masks(empty, empty, (1, 1, 1), {1: "a"}):
        assert one.value in (None, 0.0)
        assert one.value is not None or one.note
