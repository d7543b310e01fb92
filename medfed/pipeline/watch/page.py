"""The page of a watch: this look's comparisons, all looks, and results where patients have labels.

It holds counts, test results and means over groups, and no value of a single patient.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from medfed.evaluation.drift.compare import MIN_PSI, Compared
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.report import templates
from medfed.evaluation.report.formatting import interval, metric_title, number, p_value
from medfed.evaluation.rows import ALL_SITES, FEDERATED, SITE_MEAN, Row, read_rows
from medfed.files import write_whole
from medfed.pipeline.watch.state import WatchFolder
from medfed.runs.folder import RunFolder

# The direction of a shift is told from this chance on that a new value is above an earlier one.
CLEAR = 0.6


class OverTime(NamedTuple):
    """One metric over the looks: its title, what the study measured, and (look, text) of each look."""

    title: str
    study: str
    looks: list[tuple[int, str]]


def write_page(folder: RunFolder, state: WatchFolder, name: str) -> None:
    """Write watch.html from the reference, the looks and the rows."""
    reference, looks = state.read_reference(), state.read_looks()
    facts = folder.read_facts()
    page = templates.render(
        "watch.html.jinja",
        site=name,
        about=facts,
        reference=reference,
        looks=looks,
        look=looks[-1],
        alarms=[in_words(one) for one in looks[-1].alarms],
        direction=direction,
        min_psi=MIN_PSI,
        over_time=over_time(folder, state, name),
    )
    write_whole(state.page, page)


def in_words(one: Compared) -> str:
    """Return a comparison in words, such as 'noise (input): higher, PSI 1.3, corrected p < 0.001'."""
    p = p_value(one.p_holm) if one.p_holm is not None else "–"
    return f"{title_of(one)} ({one.kind}): {direction(one)}, PSI {one.psi:.1f}, corrected p {p}"


def title_of(one: Compared) -> str:
    """Return what was compared, by name."""
    return f"{one.name}, missing" if one.what == "missing" else one.name


def direction(one: Compared) -> str:
    """Return where the new values lie, in words."""
    if one.above is None:
        return "other shares"
    if one.above >= CLEAR:
        return f"higher (above an earlier patient's in {one.above:.0%})"
    if one.above <= 1 - CLEAR:
        return f"lower (above an earlier patient's in {one.above:.0%})"
    return "another spread"


def over_time(folder: RunFolder, state: WatchFolder, name: str) -> list[OverTime]:
    """Return each metric's values over the looks that had labels, beside what the study measured."""
    if not state.rows.is_file():
        return []
    by_metric: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for row in read_rows(state.rows):
        by_metric[row.metric, row.structure].append(row)
    known = read_rows(folder.rows) if folder.rows.is_file() else []
    return [
        OverTime(
            metric_title(metric) + (f", {structure}" if structure else ""),
            _of_study(known, metric, structure, name),
            [(row.round, _shown(row)) for row in sorted(rows, key=lambda row: row.round)],
        )
        for (metric, structure), rows in by_metric.items()
        if any(row.value is not None for row in rows)
    ]


def _of_study(known: list[Row], metric: str, structure: str | None, name: str) -> str:
    """Return the study's own test result: at this hospital, else over all of its hospitals."""
    for site in (name, ALL_SITES, SITE_MEAN):
        for row in known:
            ours = (row.site, row.metric, row.structure, row.model, row.split) == (
                site, metric, structure, FEDERATED, "test",
            )  # fmt: skip
            if ours and row.group is None and row.against is None and row.value is not None:
                return f"{_shown(row)}, {'here' if site == name else site}"
    return "not measured"


def _shown(row: Row) -> str:
    if row.value is None:
        return row.note or "–"
    if row.metric == "patients":
        return f"{row.value:.0f}"
    bounds = f" ({interval(row)})" if row.low is not None else ""
    return f"{number(row.value, metric_of(row.metric))}{bounds}, n {row.n}"
