"""Brier score: the mean squared error of the predicted probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from medfed.evaluation.classification import brier_of
from medfed.evaluation.intervals import Floats, Interval, mean_of
from medfed.evaluation.metrics import ClassGroup, ClassificationMetrics, Difference, Metric, OneClass
from medfed.evaluation.paired_tests import paired_difference


class Brier(ClassificationMetrics, frozen=True, tag="brier"):
    """Mean squared error of the probability; of several classes, summed over classes."""

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


def _squared_errors(group: ClassGroup) -> Floats:
    if group.binary:
        return np.asarray((group.p[:, 1] - group.y) ** 2)
    return np.asarray(((group.p - np.eye(len(group.names))[group.y]) ** 2).sum(axis=1))
