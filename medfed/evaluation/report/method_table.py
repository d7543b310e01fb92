"""A table that compares several methods on the same patients: scores with intervals, and costs.

`compare_methods` takes case rows whose `model` is a method's name, summarises them as a report does (patients
first, small groups suppressed, bootstrap intervals over patients), and compares each method to the first.
`text` formats the table for a terminal, `page` as HTML; the table holds the rows behind both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.comparisons import compare
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.report.focus import FocusRows, focus_on
from medfed.evaluation.report.formatting import both_p, interval, number, site_name
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

    `scores` are the rows of the metric shown, None if no method has one. `places` are the hospitals in the
    columns, those that took no part first. The other methods are compared to `against`.
    """

    study: str
    methods: dict[str, Cost]
    against: str
    scores: FocusRows | None
    places: list[str]
    rows: list[Row]

    @property
    def metric(self) -> str:
        """The name of the metric shown, or an empty string."""
        return self.scores.focus.metric if self.scores else ""

    def score(self, method: str, place: str) -> Row | None:
        """Return a method's score at a hospital."""
        return self.scores.get(place, method) if self.scores else None

    def difference(self, method: str, place: str) -> Row | None:
        """Return the score of `against` minus a method's."""
        return self.scores.get(place, self.against, against=method) if self.scores else None


def compare_methods(
    study: str, cases: Sequence[CaseRow], methods: Mapping[str, Cost], settings: SummarySettings
) -> MethodTable:
    """Return the table; the first method that ran is the one that the others are compared to.

    Raises:
        DataError: if case rows contradict each other.
    """
    against = next(name for name, cost in methods.items() if not cost.refused)
    rows = aggregate(cases, settings) + compare(cases, settings, model=against)
    focus = focus_on(rows, settings.held_out, against, splits=("test",))
    scores = focus.rows(rows) if focus else None
    places = sorted(
        scores.sites(against) if scores else [],
        key=lambda site: (site not in settings.held_out, site != ALL_SITES, site),
    )
    return MethodTable(study, dict(methods), against, scores, places, rows)


def to_plain(table: MethodTable) -> dict[str, object]:
    """Return the table as plain values, for JSON: each method, its cost and its score at each hospital."""
    return {
        "study": table.study,
        "metric": table.metric,
        "against": table.against,
        "methods": {name: _plain_method(table, name, cost) for name, cost in table.methods.items()},
    }


def _plain_method(table: MethodTable, name: str, cost: Cost) -> dict[str, object]:
    scores = {place: table.score(name, place) for place in table.places}
    return {
        "refused": cost.refused or None,
        "bytes_up": cost.bytes_up,
        "seconds": cost.seconds,
        "scores": {
            place: {"value": row.value, "low": row.low, "high": row.high, "n": row.n, "note": row.note}
            for place, row in scores.items()
            if row is not None
        },
    }


def text(table: MethodTable) -> str:
    """Return the table as lines for a terminal."""
    shown = table.places[:MAX_TERMINAL_PLACES]
    minus = f"{table.against} minus it, {site_name(shown[0])}" if shown else ""
    lines = [["method", *map(site_name, shown), minus, "sent"]]
    for method, cost in table.methods.items():
        if cost.refused:
            lines.append([method, f"not run: {cost.refused}"])
            continue
        scores = [_cell(table.score(method, place)) for place in shown]
        compared = shown and method != table.against
        difference = _cell(table.difference(method, shown[0]), sign=True) if compared else ""
        sent = format_bytes(cost.bytes_up) if cost.bytes_up is not None else ""
        lines.append([method, *scores, difference, sent])
    whole = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    ]
    label = metric_of(table.metric).title if table.metric else "no metric"
    return "\n".join([f"{label}, with 95 % intervals over patients", "", *aligned])


# A terminal has room for this many hospitals; the page and the files have all of them.
MAX_TERMINAL_PLACES = 2


def _cell(row: Row | None, sign: bool = False) -> str:
    """Return a value with its interval, and its p value if it was tested; `sign` for a difference."""
    if row is None or row.value is None:
        return "–"
    around = interval(row, sign=sign)
    shown = number(row.value, metric_of(row.metric), sign=sign)
    return f"{shown}{f' ({around})' if around else ''}{f', p {both_p(row)}' if row.p is not None else ''}"


def page(table: MethodTable) -> str:
    """Return the table as one HTML file that needs no network."""
    metric = metric_of(table.metric) if table.metric else None
    return render("method_table.html.jinja", table=table, metric=metric, cell=_cell)


def renamed(cases: Sequence[CaseRow], names: Mapping[tuple[str, str], str]) -> list[CaseRow]:
    """Return the case rows whose (model, site) has a name in `names`, with that name as their model."""
    return [
        msgspec.structs.replace(case, model=names[case.model, case.site])
        for case in cases
        if (case.model, case.site) in names
    ]
