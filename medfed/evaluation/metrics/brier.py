"""Brier score: the mean squared error of the predicted probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from medfed.evaluation.classification import brier_of
from medfed.evaluation.intervals import Floats, Interval, mean_of
from medfed.evaluation.metrics import (
    ClassGroup,
    ClassificationMetrics,
    Difference,
    FindingsGroup,
    Metric,
    OneClass,
    SubgroupStatistic,
)
from medfed.evaluation.paired_tests import paired_difference


class Brier(ClassificationMetrics, frozen=True, tag="brier"):
    """Mean squared error of the probability; of several classes, summed over classes.

    Of several findings, it is each patient's mean over the findings that were labelled.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "brier",
            "Brier score",
            400,
            better="lower",
            description="mean squared error of the probability",
            headline=True,
            compared=True,
            by_outcome=False,
        ),
    )

    def of_class(self, group: OneClass) -> Mapping[str, Interval]:
        """Return the squared error of the class's probability."""
        return {"brier": group.interval(brier_of(group.p, group.y))}

    def over_classes(self, group: ClassGroup) -> Mapping[str, Interval]:
        """Return the squared error, summed over classes."""
        return {"brier": group.interval(mean_of(_squared_errors(group)))}

    def difference(self, first: ClassGroup, second: ClassGroup, min_patients: int) -> Difference | None:
        """Return the difference with a sign-flip test, paired by patient."""
        interval, p = paired_difference(_squared_errors(first), _squared_errors(second), first.resampling)
        return Difference("brier", None, interval, p, "sign-flip permutation")

    def over_findings(self, group: FindingsGroup) -> Mapping[str, Interval]:
        """Return the squared error, for each patient the mean over the labelled findings."""
        return {"brier": group.resampling.interval(mean_of(_finding_errors(group)), len(group.predictions.p))}

    def findings_differences(self, first: FindingsGroup, second: FindingsGroup) -> list[Difference]:
        """Return the difference over all findings with a sign-flip test, paired by patient."""
        errors = _finding_errors(first), _finding_errors(second)
        interval, p = paired_difference(*errors, first.resampling)
        return [Difference("brier", None, interval, p, "sign-flip permutation")]

    def findings_subgroup(self, group: FindingsGroup) -> SubgroupStatistic | None:
        """Return the squared error, which is defined in a group without any patient of some finding."""
        errors = _finding_errors(group)
        return SubgroupStatistic("brier", None, lambda some: mean_of(errors[some]))


def _finding_errors(group: FindingsGroup) -> Floats:
    """Return each patient's mean squared error over the labelled findings."""
    return group.mean_by_patient((group.predictions.p - group.predictions.y) ** 2)


def _squared_errors(group: ClassGroup) -> Floats:
    if group.binary:
        return np.asarray((group.p[:, 1] - group.y) ** 2)
    return np.asarray(((group.p - np.eye(len(group.names))[group.y]) ** 2).sum(axis=1))
