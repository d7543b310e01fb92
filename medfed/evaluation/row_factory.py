"""Builds the rows of one group of patients from estimates; the fields that they share are given once."""

from __future__ import annotations

from typing import NamedTuple

from medfed.evaluation.intervals import STUDENT, Interval, is_wide
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.rows import Row


class RowFactory(NamedTuple):
    """What the rows of one group of patients have in common."""

    round: int
    site: str
    split: str
    model: str
    against: str | None = None
    group: str | None = None

    def row(
        self, metric: str, structure: str | None, interval: Interval, n: int | None, p: float | None = None
    ) -> Row:
        """Return the row of an interval; `n` counts the group's patients. A missing value has no method.

        Student's interval ends where the metric's range ends.
        """
        interval = interval if self.against else _within_range(metric, interval)
        return Row(
            **self._asdict(),
            metric=metric,
            structure=structure,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            n=n,
            p=p,
            method=(interval.method or None) if interval.value is not None else None,
            note=interval.note,
        )

    def suppressed(self, metric: str, note: str, n: int | None = None, structure: str | None = None) -> Row:
        """Return a row without a value; `note` says why."""
        return self.row(metric, structure, Interval(None, None, None, 0, "", note), n)


def _within_range(metric: str, interval: Interval) -> Interval:
    if interval.low is None or interval.high is None or not interval.method.startswith(STUDENT):
        return interval
    known = metric_of(metric)
    low = interval.low if known.lowest is None else max(interval.low, known.lowest)
    high = interval.high if known.highest is None else min(interval.high, known.highest)
    return interval._replace(low=low, high=high)


def mark_wide(metric: str, interval: Interval) -> Interval:
    """Return the interval with a note that says so if it is wide for the metric's range."""
    known = metric_of(metric)
    return interval.with_note("wide interval" if is_wide(interval, known.lowest, known.highest) else None)
