"""Harrell's c-index (JAMA 1982)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from medfed.evaluation.intervals import Interval
from medfed.evaluation.metrics import Difference, Metric, SubgroupStatistic, SurvivalGroup, SurvivalMetrics
from medfed.evaluation.survival import c_index_difference, c_index_of


class CIndex(SurvivalMetrics, frozen=True, tag="c_index"):
    """Chance that of two patients the one at higher risk has the event first."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "c_index",
            "c-index",
            500,
            description="Harrell's; chance that of two patients the one at higher risk fails first",
            headline=True,
            compared=True,
        ),
    )

    def of_group(self, group: SurvivalGroup) -> Mapping[str, Interval]:
        """Return the c-index."""
        risks, times, events, _ = group.patients
        return {"c_index": group.resampling.interval(c_index_of(risks, times, events), len(risks))}

    def difference(self, first: SurvivalGroup, second: SurvivalGroup) -> Difference | None:
        """Return the difference with the jackknife's test."""
        risks, times, events, _ = first.patients
        interval, p = c_index_difference(risks, second.patients.risks, times, events, first.resampling)
        return Difference("c_index", None, interval, p, "jackknife z" if p is not None else "no test")

    def subgroup(self, group: SurvivalGroup) -> SubgroupStatistic | None:
        """Return the c-index."""
        risks, times, events, _ = group.patients
        return SubgroupStatistic(
            "c_index",
            None,
            lambda some: c_index_of(risks[some], times[some], events[some]),
            (events,),
            "an event",
        )
