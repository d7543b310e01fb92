"""Comparison of several runs: each run's results at each hospital, and its difference to the first run.

Differences are paired by patient and need the case rows of both runs, which only the hospitals have.
Elsewhere the runs' own rows are shown without a test. The rows are written as `runs.jsonl` and `runs.csv`,
the page as `runs.html`; none of them contains results of single patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from medfed.errors import RunError
from medfed.evaluation import rows
from medfed.evaluation.comparisons import compare, holm_corrected
from medfed.evaluation.disclosure import differ_by_few
from medfed.evaluation.metrics import headline_metrics, metric_of
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.report import charts
from medfed.evaluation.report.formatting import interval, is_small_sample, number, site_name
from medfed.evaluation.report.run import Run, read_run
from medfed.evaluation.report.templates import render
from medfed.evaluation.rows import ALL_SITES, FEDERATED, SITE_MEAN, CaseRow, Row
from medfed.files import private_folder, write_whole
from medfed.runs.folder import RunFolder


def run_names(runs: Sequence[Path]) -> list[str]:
    """Return the names of the runs' folders, with a number appended to a name that occurs again."""
    names: list[str] = []
    for run in runs:
        name, number = run.resolve().name, 2
        while name in names:
            name = f"{run.resolve().name}-{number}"
            number += 1
        names.append(name)
    return names


def comparison_rows(runs: Sequence[Path]) -> list[Row]:
    """Return each run's federated rows under the run's name, and the differences to the first run.

    Raises:
        RunError: if a folder is not a finished run.
        DataError: if case rows contradict each other.
    """
    names = run_names(runs)
    contents = [read_run(run) for run in runs]
    own = [
        msgspec.structs.replace(row, model=name)
        for name, run in zip(names, contents, strict=True)
        for row in run.rows
        if row.model == FEDERATED and row.split == "test" and row.group is None and row.against is None
    ]
    cases = [_federated_cases(run, name) for run, name in zip(runs, names, strict=True)]
    own = _apart(own, dict(zip(names, cases, strict=True)), dict(zip(names, contents, strict=True)))
    differences: list[Row] = []
    for name, run, theirs in zip(names[1:], contents[1:], cases[1:], strict=True):
        settings = _settings(contents[0], run)
        differences += compare([*cases[0], *theirs], settings, model=name, correct=False)
    return own + holm_corrected(differences)


def _apart(own: Sequence[Row], cases: Mapping[str, Sequence[CaseRow]], runs: Mapping[str, Run]) -> list[Row]:
    """Return runs' own rows without those that, beside an earlier run's, would be of too few patients.

    Where one more patient was tested, a reference's mean volumes over n and n + 1 give a single patient's.
    With a hospital's row those of all hospitals are withheld, from which it would follow.
    """
    least = max(run.study.min_patients for run in runs.values())
    before: dict[str, list[frozenset[str]]] = {}
    withheld: set[tuple[str, str]] = set()
    for name, run in runs.items():
        for site in sorted({case.site for case in cases[name]}):
            patients = frozenset(
                case.patient for case in cases[name] if (case.site, case.split) == (site, "test")
            )
            shown = before.setdefault(site, [])
            if len(patients) < least:
                continue
            if differ_by_few(patients, shown, least):
                withheld |= {(name, site)}
                if site not in run.facts.held_out:
                    withheld |= {(name, ALL_SITES), (name, SITE_MEAN)}
            else:
                shown.append(patients)
    note = f"beside an earlier run's it would be of fewer than {least} patients, who came or went since"
    nothing = {"value": None, "low": None, "high": None, "method": None, "note": note}
    return [
        msgspec.structs.replace(row, **nothing)
        if (row.model, row.site) in withheld and row.metric != "patients"
        else row
        for row in own
    ]


def _settings(first: Run, other: Run) -> SummarySettings:
    return SummarySettings(
        round=max((row.round for row in other.rows), default=0),
        seed=first.facts.seed,
        classes=first.facts.classes,
        # A hospital that was held out in one run and trained in the other is not pooled.
        held_out=sorted({*first.facts.held_out, *other.facts.held_out}),
        min_patients=max(first.study.min_patients, other.study.min_patients),
        draws=first.study.draws,
    )


def _federated_cases(run: Path, name: str) -> list[CaseRow]:
    path = RunFolder(run).cases
    if not path.is_file():
        return []
    return [
        msgspec.structs.replace(case, model=name)
        for case in rows.unperturbed(rows.read_cases(path))
        if case.model == FEDERATED
    ]


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write `runs.jsonl`, `runs.csv` and `runs.html` into `out`, and return the page's path.

    Raises:
        RunError: if there are fewer than two runs, or a folder is not a finished run.
    """
    if len(runs) < 2:
        raise RunError("one run has its own report; give two runs or more to compare them")
    compared = comparison_rows(runs)
    private_folder(out)
    rows.write(out / "runs.jsonl", compared)
    rows.write_csv(out / "runs.csv", compared)
    write_whole(out / "runs.html", page(run_names(runs), compared), durable=True)
    return out / "runs.html"


def page(names: Sequence[str], rows_shown: Sequence[Row]) -> str:
    """Return the page: a table for each headline metric and structure that the runs have."""
    keys = {(row.metric, row.structure) for row in rows_shown}
    tables = [
        _table(names, rows_shown, metric.name, structure)
        for metric in headline_metrics()
        if metric.compared
        for structure in sorted((its for name, its in keys if name == metric.name), key=lambda its: its or "")
    ]
    shown = [table for table in tables if table["sites"]]
    return render("run_comparison.html.jinja", names=names, tables=shown)


def _table(
    names: Sequence[str], rows_shown: Sequence[Row], metric: str, structure: str | None
) -> dict[str, Any]:
    """Return one metric's table: each run's row at each hospital, and its difference to the first run."""
    rows_of_metric = [row for row in rows_shown if (row.metric, row.structure) == (metric, structure)]
    measured = {row.site for row in rows_of_metric if row.value is not None}
    last = [SITE_MEAN, ALL_SITES]
    sites = sorted(measured, key=lambda site: (last.index(site) + 1 if site in last else 0, site))
    by = {(row.model, row.site, row.against): row for row in rows_of_metric}
    lines = [
        (name, [(by.get((name, site, None)), by.get((name, site, names[0]))) for site in sites])
        for name in names
    ]
    shown = [row for _, cells in lines for own, difference in cells for row in (own, difference)]
    return {
        "metric": metric,
        "structure": structure,
        "sites": sites,
        "lines": lines,
        "small": any(is_small_sample(row) for row in shown),
        "plots": [
            _plot(metric, site, [(name, by.get((name, site, None))) for name in names]) for site in sites
        ],
    }


def _plot(metric: str, site: str, rows_shown: Sequence[tuple[str, Row | None]]) -> dict[str, Any]:
    """Return one hospital's forest plot: each run's value and interval, and the first run's as a line."""
    known = metric_of(metric)
    own = [(name, row) for name, row in rows_shown if row is not None and row.value is not None]
    ends = [end for _, row in own for end in (row.value, row.low, row.high)]
    axis = charts.span(ends, known.lowest, known.highest)
    first = rows_shown[0][1]
    lines = []
    for name, row in own:
        title = f"{name} at {site_name(site)}: {number(row.value, known)} ({interval(row)})"
        value = (row.value or 0.0, row.low, row.high)
        reference = first.value if first is not None else None
        lines.append((name, charts.whisker(value, axis, reference, strong=row is first, title=title)))
    return {"site": site, "lines": lines, "scale": charts.scale(axis)}
