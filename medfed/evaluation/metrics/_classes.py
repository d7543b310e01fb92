"""Metrics of a classifier, computed from each patient's class probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfed.errors import DataError
from medfed.evaluation import classification
from medfed.evaluation.intervals import Floats, Interval, Resampling, Statistic
from medfed.evaluation.metrics._metric import Difference, Mask, MetricFamily, SubgroupStatistic


class OperatingPoints(NamedTuple):
    """One threshold per class, and how they were chosen ("Youden index on 40 validation patients")."""

    thresholds: Sequence[float]
    source: str


class OneClass(NamedTuple):
    """A group's patients for one class against the others; `y` is true where a patient is of the class."""

    p: Floats
    y: Mask
    threshold: float
    source: str
    resampling: Resampling

    def interval(self, statistic: Statistic, undefined: str | None = None) -> Interval:
        """Return a statistic with its bootstrap interval; `undefined` says why it may have no value."""
        interval = self.resampling.interval(statistic, len(self.p))
        return _explained(interval, undefined)


class ClassGroup(NamedTuple):
    """A group's patients: (patients, classes) probabilities, class numbers and class names."""

    p: Floats
    y: NDArray[np.intp]
    names: Sequence[str]
    points: OperatingPoints
    resampling: Resampling

    @classmethod
    def of(
        cls,
        probabilities: ArrayLike,
        targets: ArrayLike,
        names: Sequence[str],
        resampling: Resampling,
        points: OperatingPoints | None = None,
    ) -> ClassGroup:
        """Return the group of these patients.

        Raises:
            DataError: if probabilities and targets do not fit the classes, or probabilities don't sum to one.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        y = classification.class_numbers(targets, len(names))
        if p.shape != (len(y), len(names)):
            raise DataError(f"probabilities have shape {p.shape}, expected {(len(y), len(names))}")
        if len(p) and not np.abs(p.sum(axis=1) - 1).max() < 1e-3:
            raise DataError(
                "probabilities of a patient do not sum to one; apply softmax before the evaluation"
            )
        chance = OperatingPoints([0.5] * len(names), "not fixed on validation patients")
        return cls(p, y, names, points or chance, resampling)

    @property
    def binary(self) -> bool:
        """Whether there are two classes, of which the second is the positive one."""
        return len(self.names) == 2

    def single(self, number: int) -> OneClass:
        """Return the patients for one class against the others."""
        threshold = self.points.thresholds[number]
        return OneClass(self.p[:, number], self.y == number, threshold, self.points.source, self.resampling)

    def interval(self, statistic: Statistic) -> Interval:
        """Return a statistic with its bootstrap interval."""
        return _explained(self.resampling.interval(statistic, len(self.p)), "a class without patients")

    def outcomes(self) -> list[int]:
        """Return how many patients each class has."""
        return [int(count) for count in np.bincount(self.y, minlength=len(self.names))]


def _explained(interval: Interval, undefined: str | None) -> Interval:
    if interval.value is None and undefined and interval.n:
        return interval._replace(note=undefined)
    return interval


class ClassificationMetrics(MetricFamily, frozen=True):
    """Metrics of each patient's class probabilities."""

    serves: ClassVar[tuple[str, ...]] = ("classify", "table")

    def of_class(self, group: OneClass) -> Mapping[str, Interval]:
        """Return the metrics of one class against the others; of two classes, of the second one."""
        return {}

    def over_classes(self, group: ClassGroup) -> Mapping[str, Interval]:
        """Return the metrics of three or more classes together."""
        return {}

    def difference(self, first: ClassGroup, second: ClassGroup, min_patients: int) -> Difference | None:
        """Return the first model's metric minus the second's on the same patients, or None without one."""
        return None

    def subgroup(self, group: ClassGroup) -> SubgroupStatistic | None:
        """Return the metric that subgroups are compared by, if this family has it."""
        return None


def macro(parts: Sequence[Statistic]) -> Statistic:
    """Return the mean of one statistic per class, in which every class counts alike, however rare.

    A resample without a class is left undefined, rather than averaged over fewer classes.
    """
    return lambda counts: np.mean([part(counts) for part in parts], axis=0)
