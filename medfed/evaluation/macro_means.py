"""The mean over hospitals, each counting alike; in the mean over patients the largest counts most.

It is computed from rows that may be shown, so it says nothing beyond them, and a hub has it without pooling
patients. A difference between both means says that results differ between hospitals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from medfed.evaluation.metrics import Metric, metric_of
from medfed.evaluation.rows import ALL_SITES, SITE_MEAN, Row

METHOD = "mean of the hospitals' values; normal, from their intervals"


def macro_means(rows: Iterable[Row], held_out: Sequence[str]) -> list[Row]:
    """Return each model's mean over the study's hospitals, if at least two have a value to show."""
    by_measure: dict[tuple[int, str, str, str, str | None], list[Row]] = defaultdict(list)
    for row in rows:
        single = row.site not in {*held_out, ALL_SITES, SITE_MEAN}
        whole, metric = single and row.group is None and row.against is None, metric_of(row.metric)
        if whole and metric.comparable and (metric.headline or metric.compared):
            by_measure[row.round, row.split, row.model, row.metric, row.structure].append(row)
    means = [_mean(some) for some in by_measure.values()]
    return [row for row in means if row is not None]


def _mean(rows: Sequence[Row]) -> Row | None:
    """Return the mean of one measure over hospitals; its interval takes the hospitals as given."""
    known = [row for row in rows if row.value is not None]
    if len(known) < 2:
        return None
    value = sum(row.value or 0.0 for row in known) / len(known)
    errors = [(row.high - row.low) / 2 for row in known if row.low is not None and row.high is not None]
    low = high = None
    if len(errors) == len(known):
        half = sum(error**2 for error in errors) ** 0.5 / len(known)
        low, high = _within(value - half, value + half, metric_of(known[0].metric))
    of = "" if len(known) == len(rows) else f" of {len(rows)}; the others have no value to show"
    patients = [row.n for row in known if row.n is not None]
    return Row(
        round=known[0].round,
        site=SITE_MEAN,
        split=known[0].split,
        model=known[0].model,
        metric=known[0].metric,
        structure=known[0].structure,
        value=value,
        low=low,
        high=high,
        n=sum(patients) if len(patients) == len(known) else None,
        method=METHOD,
        note=f"hospitals: {len(known)}{of}",
    )


def _within(low: float, high: float, metric: Metric) -> tuple[float, float]:
    lowest, highest = metric.lowest, metric.highest
    return low if lowest is None else max(low, lowest), high if highest is None else min(high, highest)
