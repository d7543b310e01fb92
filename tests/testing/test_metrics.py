"""The contract of a metric family names what naive ones break."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from contract import CHECKS_OF_EVERY_KIND, broken

from medfed.evaluation.intervals import Interval
from medfed.evaluation.metrics import (
    CaseValue,
    ClassificationMetrics,
    Difference,
    Metric,
    MetricFamily,
    SegmentationMetrics,
    SurvivalMetrics,
)
from medfed.testing import check_metric_family

METRIC = Metric("agreement", "Agreement", 5, headline=True, compared=True)


def interval(value: float | None) -> Interval:
    return Interval(value, None, None, 50, "none")


class Agreement(SegmentationMetrics, frozen=True, tag="agreement"):
    """Share of voxels that are labelled alike, if the structure is in either mask."""

    metrics: ClassVar[tuple[Metric, ...]] = (METRIC,)

    def measure(self, masks):
        if not any(masks.voxels):
            return {"agreement": CaseValue(None, "in neither mask")}
        return {"agreement": CaseValue(float(np.mean(masks.prediction == masks.reference)), None)}


class Correct(ClassificationMetrics, frozen=True, tag="correct"):
    """Share of patients whose more probable class is theirs."""

    metrics: ClassVar[tuple[Metric, ...]] = (METRIC,)

    def of_class(self, group):
        return {"agreement": interval(float(np.mean((group.p > 0.5) == group.y)))}

    def difference(self, first, second, min_patients):
        return Difference("agreement", None, interval(0.0), None, "no test")


class Ordered(SurvivalMetrics, frozen=True, tag="ordered"):
    """Share of patients with a known risk."""

    metrics: ClassVar[tuple[Metric, ...]] = (METRIC,)

    def of_group(self, group):
        return {"agreement": interval(float(np.isfinite(group.patients.risks).mean()))}


class Undeclared(Agreement, frozen=True, tag="undeclared"):
    """Returns a metric that no record describes."""

    def measure(self, masks):
        return {"overlap": CaseValue(1.0, None)}


class Careless(Agreement, frozen=True, tag="careless"):
    """Divides by zero where neither mask holds the structure."""

    def measure(self, masks):
        with np.errstate(all="ignore"):
            same = np.sum(masks.prediction & masks.reference)
            return {"agreement": CaseValue(float(same / np.sum(masks.prediction | masks.reference)), None)}


class Reversed(Agreement, frozen=True, tag="reversed"):
    """Measures the disagreement, although higher is declared as better."""

    def measure(self, masks):
        return {"agreement": CaseValue(float(np.any(masks.prediction != masks.reference)), None)}


class Percent(Correct, frozen=True, tag="percent"):
    """Returns percent, although the declared range ends at 1."""

    def of_class(self, group):
        return {"agreement": interval(93.0)}


class Biased(Correct, frozen=True, tag="biased"):
    """Finds a difference between a model and itself."""

    def difference(self, first, second, min_patients):
        return Difference("agreement", None, interval(0.1), None, "no test")


class Empty(Ordered, frozen=True, tag="empty"):
    """Returns no value and no reason."""

    def of_group(self, group):
        return {"agreement": interval(None)}


class Unclear(Agreement, frozen=True, tag="unclear"):
    """A headline that does not declare which values are better."""

    metrics: ClassVar[tuple[Metric, ...]] = (replace(METRIC, better="none"),)


class Copied(Agreement, frozen=True, tag="copied"):
    """Takes the name and the rank of Dice."""

    metrics: ClassVar[tuple[Metric, ...]] = (METRIC, Metric("dice", "Dice", 100))


MASKS = "of_masks_it_measures_what_it_declares"
CLASSES = "of_class_probabilities_it_estimates_what_it_declares"
FINDINGS = "of_several_findings_it_estimates_what_it_declares"
WRONG = {
    Undeclared: {MASKS},
    Careless: {MASKS},
    Reversed: {MASKS},
    Percent: {CLASSES, FINDINGS},
    Biased: {CLASSES},
    Empty: {"of_survival_it_estimates_what_it_declares"},
    Unclear: {"its_records_tell_a_report_what_it_needs"},
    Copied: {"its_names_and_ranks_are_its_own"},
}


@pytest.mark.parametrize("kind", [Agreement, Correct, Ordered])
def test_a_right_one_passes(kind: type[MetricFamily]) -> None:
    check_metric_family(kind())


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_one_is_named(kind: type[MetricFamily]) -> None:
    assert broken(check_metric_family, kind()) == WRONG[kind]


def test_each_check_is_broken_by_one_of_them() -> None:
    assert set().union(*WRONG.values(), CHECKS_OF_EVERY_KIND) == set(check_metric_family.checks)
