"""Metrics of a survival model, computed from each patient's risk, time and event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from medfed.evaluation.intervals import Interval, Resampling
from medfed.evaluation.metrics._metric import Difference, MetricFamily, SubgroupStatistic
from medfed.evaluation.patients import SurvivalPredictions


class SurvivalGroup(NamedTuple):
    """A group's patients, how they are resampled, and how many of an outcome must be there for
    it to be shown.
    """

    patients: SurvivalPredictions
    resampling: Resampling
    min_patients: int = 0


class SurvivalMetrics(MetricFamily, frozen=True):
    """Metrics of predicted risks against times that may be censored."""

    serves: ClassVar[tuple[str, ...]] = ("survival",)

    def of_group(self, group: SurvivalGroup) -> Mapping[str, Interval]:
        """Return the metrics of a group of patients."""
        return {}

    def difference(self, first: SurvivalGroup, second: SurvivalGroup) -> Difference | None:
        """Return the first model's metric minus the second's on the same patients, or None without one."""
        return None

    def subgroup(self, group: SurvivalGroup) -> SubgroupStatistic | None:
        """Return the metric that subgroups are compared by, if this family has it."""
        return None
