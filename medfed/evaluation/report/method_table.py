"""One table of several methods on the same patients: each one's score with its interval, and its cost.

`compare_methods` takes case rows whose `model` is a method's name, summarises them as a report does (patients
first, small groups suppressed, bootstrap intervals over patients), and compares each method to the first on
the same patients. `text` is the table for a terminal, `page` a page to print; the rows behind both are in the
table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.comparisons import compare
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.report.focus import headline_names
from medfed.evaluation.report.formatting import interval, number, p_value, site_name
from medfed.evaluation.report.templates import render
from medfed.evaluation.rows import ALL_SITES, CaseRow, Row
from medfed.files import format_bytes


class Cost(NamedTuple):
    """A method's cost: bytes sent by a hospital, seconds of training, or why it did not run."""

    bytes_up: float | None = None
    seconds: float | None = None
    refused: str = ""


class MethodTable(NamedTuple):
    """The rows of all methods, and which of them the table shows.

    `places` are the hospitals in its columns, those that took no part first. The other methods
    are compared to `against`.
    """

    study: str
    methods: dict[str, Cost]
    against: str
    metric: str
    structure: str | None
    places: list[str]
    rows: list[Row]

    def score(self, method: str, place: str) -> Row | None:
        """Return a method's score at a hospital."""
        return self._row(model=method, site=place, against=None)

    def difference(self, method: str, place: str) -> Row | None:
        """Return the score of `against` minus a method's."""
        return self._row(model=self.against, site=place, against=method)

    def _row(self, *, model: str, site: str, against: str | None) -> Row | None:
        for row in self.rows:
            about = (row.model, row.site, row.against, row.metric, row.structure, row.split, row.group)
            if about == (model, site, against, self.metric, self.structure, "test", None):
                return row
        return None


def compare_methods(
    study: str, cases: Sequence[CaseRow], methods: Mapping[str, Cost], settings: SummarySettings
) -> MethodTable:
    """Return the table; the first method that ran is the one that the others are compared to.

    Raises:
        DataError: if case rows contradict each other.
    """
    against = next(name for name, cost in methods.items() if not cost.refused)
    rows = aggregate(cases, settings) + compare(cases, settings, model=against)
    shown = [
        row
        for row in rows
        if row.model == against and row.split == "test" and row.against is None and row.group is None
    ]
    metric = next(
        (m for m in headline_names() if any(row.metric == m and row.value is not None for row in shown)), ""
    )
    some = [row for row in shown if row.metric == metric]
    structures = {row.structure for row in some}
    structure = None if None in structures or not structures else sorted(map(str, structures))[0]
    sites = [row.site for row in some if row.structure == structure]
    order = sorted(sites, key=lambda site: (site not in settings.held_out, site != ALL_SITES, site))
    return MethodTable(study, dict(methods), against, metric, structure, order, rows)


def text(table: MethodTable) -> str:
    """Return the table as lines for a terminal."""
    shown = table.places[:MAX_TERMINAL_PLACES]
    head = [
        "method",
        *map(site_name, shown),
        f"{table.against} minus it, {site_name(shown[0])}" if shown else "",
        "sent",
    ]
    lines = [head]
    for method, cost in table.methods.items():
        if cost.refused:
            lines.append([method, f"not run: {cost.refused}"])
            continue
        line = [method, *(_score(table.score(method, place)) for place in shown)]
        line.append(
            _difference(table.difference(method, shown[0])) if shown and method != table.against else ""
        )
        line.append(format_bytes(cost.bytes_up) if cost.bytes_up is not None else "")
        lines.append(line)
    widths = [max(len(line[at]) for line in lines if len(line) == len(head)) for at in range(len(head))]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    ]
    label = metric_of(table.metric).title if table.metric else "no metric"
    return "\n".join([f"{label}, with 95 % intervals over patients", "", *aligned])


# A terminal has room for this many hospitals; the page and the files have all of them.
MAX_TERMINAL_PLACES = 2


def _score(row: Row | None) -> str:
    if row is None or row.value is None:
        return "–"
    around = interval(row)
    return f"{number(row.value, metric_of(row.metric))}{f' ({around})' if around else ''}"


def _difference(row: Row | None) -> str:
    if row is None or row.value is None:
        return "–"
    around = interval(row, sign=True)
    shown = number(row.value, metric_of(row.metric), sign=True)
    return f"{shown}{f' ({around})' if around else ''}{f', p {p_value(row.p)}' if row.p is not None else ''}"


def page(table: MethodTable) -> str:
    """Return the table as one HTML file that needs no network."""
    return render(
        "method_table.html.jinja",
        table=table,
        metric=metric_of(table.metric) if table.metric else None,
        score=_score,
        difference=_difference,
    )


def renamed(cases: Sequence[CaseRow], names: Mapping[tuple[str, str], str]) -> list[CaseRow]:
    """Return the case rows whose (model, site) has a method's name, under that name."""
    return [
        msgspec.structs.replace(case, model=names[case.model, case.site])
        for case in cases
        if (case.model, case.site) in names
    ]
