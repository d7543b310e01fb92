"""How many patients had the event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from medfed.evaluation.intervals import Interval
from medfed.evaluation.metrics import Metric, SurvivalGroup, SurvivalMetrics


class Events(SurvivalMetrics, frozen=True, tag="events"):
    """Number of observed events."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("events", "Events observed", 530, "", "none", highest=None, description="count", count=True),
    )

    def of_group(self, group: SurvivalGroup) -> Mapping[str, Interval]:
        """Return the number of events, suppressed where too few patients are without one."""
        events = group.patients.events
        number, alive = int(events.sum()), len(events) - int(events.sum())
        if 0 < alive < group.min_patients:
            note = f"fewer than {group.min_patients} without an event"
            return {"events": Interval(None, None, None, len(events), "", note)}
        return {"events": Interval(float(number), None, None, len(events), "")}
