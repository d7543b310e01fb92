"""The metric, structure, split, round and hospitals that a report is about, and their rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from medfed.evaluation.metrics import Metric, headline_metrics, metric_of
from medfed.evaluation.patients import OVERLAP, RIGHTLY_EMPTY
from medfed.evaluation.report.run import Run
from medfed.evaluation.rows import ALL_SITES, FEDERATED, SITE_MEAN, Row

SPLITS = ("test", "val", "train")
# Whose patients a count is of: only who has a structure can have it missed, only who has it not can have it
# invented. Each is the metric that is of those patients.
COUNTED_OF = {"missed": OVERLAP, "invented": RIGHTLY_EMPTY, "absent": RIGHTLY_EMPTY}


def counted_of_those_concerned(rows: Iterable[Row]) -> list[Row]:
    """Return the rows, with counts of those patients in whom they can happen, where their number is shown."""

    def about(row: Row, metric: str) -> tuple[object, ...]:
        return metric, row.round, row.site, row.split, row.model, row.structure, row.group, row.against

    every = list(rows)
    shown = {about(row, row.metric): row.n for row in every if row.value is not None}
    replaced = []
    for row in every:
        n = shown.get(about(row, COUNTED_OF.get(row.metric, "")))
        replaced.append(msgspec.structs.replace(row, n=n) if n is not None else row)
    return replaced


class Focus(NamedTuple):
    """One metric of one structure, on one split, in one round, at some hospitals."""

    metric: str
    structure: str | None
    split: str
    round: int
    places: list[str]

    @property
    def record(self) -> Metric:
        """The metric's record."""
        return metric_of(self.metric)

    def rows(self, rows: Iterable[Row]) -> FocusRows:
        """Return the rows of this metric, structure, split and round."""
        return FocusRows(rows, self)


class FocusRows:
    """A run's rows of one metric, structure, split and round, by what they are about."""

    def __init__(self, rows: Iterable[Row], focus: Focus) -> None:
        self.focus = focus
        self._rows: dict[tuple[str, str, str | None, str | None], Row] = {}
        for row in rows:
            about = (row.metric, row.structure, row.split, row.round)
            if about == (focus.metric, focus.structure, focus.split, focus.round):
                self._rows.setdefault((row.site, row.model, row.group, row.against), row)

    def get(self, site: str, model: str, against: str | None = None, group: str | None = None) -> Row | None:
        """Return one row, which may have no value, or None where there is none."""
        return self._rows.get((site, model, group, against))

    def valued(
        self, site: str, model: str, against: str | None = None, group: str | None = None
    ) -> Row | None:
        """Return one row, or None where there is none or it has no value."""
        row = self.get(site, model, against, group)
        return row if row is not None and row.value is not None else None

    def sites(self, model: str) -> list[str]:
        """Return the hospitals at which a model has a row."""
        return [site for site, *other in self._rows if other == [model, None, None]]

    def groups(self, prefix: str) -> list[str]:
        """Return the groups that begin with a prefix."""
        return sorted({group for _, _, group, _ in self._rows if group and group.startswith(prefix)})


def focus_of(run: Run) -> Focus | None:
    """Return the headline metric and its hospitals: those held out first, then all that took part."""
    return focus_on(run.rows, run.facts.held_out)


def focus_on(
    rows: Iterable[Row], held_out: Sequence[str], model: str = FEDERATED, splits: Sequence[str] = SPLITS
) -> Focus | None:
    """Return the best-ranked headline metric with a value of this model, on the first split that has one."""
    valued = [
        row
        for row in rows
        if row.group is None and row.against is None and row.model == model and row.value is not None
    ]
    for split in splits:
        for metric in headline_metrics():
            some = [row for row in valued if row.split == split and row.metric == metric.name]
            if some:
                return _focus(some, held_out)
    return None


def _focus(rows: list[Row], held_out: Sequence[str]) -> Focus:
    latest = max(row.round for row in rows)
    rows = [row for row in rows if row.round == latest]
    structures = {row.structure for row in rows}
    structure = None if None in structures else min(map(str, structures))
    sites = [row.site for row in rows if row.structure == structure]
    # The one with the most patients first: six must not stand before eighty.
    patients = {row.site: row.n or 0 for row in rows if row.structure == structure}
    tested_only = sorted((site for site in held_out if site in sites), key=lambda one: (-patients[one], one))
    pooled = [ALL_SITES] if ALL_SITES in sites else []
    rest = sorted(site for site in sites if site not in {*tested_only, ALL_SITES, SITE_MEAN})
    # A hub pools no patients, but has every hospital's own value.
    rest = [SITE_MEAN, *rest] if SITE_MEAN in sites else rest
    return Focus(rows[0].metric, structure, rows[0].split, latest, tested_only + pooled or rest)
