"""Several runs side by side: one row per run and hospital, and the difference to the first run.

Differences are paired by patient and need the case rows of both runs, so they are computed where the patients
are; elsewhere the runs' own rows are shown without a test. Rows are written first (`runs.jsonl`, `runs.csv`),
then the page (`runs.html`), which holds no case and no patient's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import msgspec

from medfed.errors import RunError
from medfed.evaluation import rows
from medfed.evaluation.comparisons import compare, holm_corrected
from medfed.evaluation.metrics import headline_metrics, metric_of
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.report.formatting import interval, number, p_value, site_name
from medfed.evaluation.report.run import Run, read_run
from medfed.evaluation.report.templates import style
from medfed.evaluation.rows import ALL_SITES, FEDERATED, CaseRow, Row
from medfed.files import write_whole
from medfed.runs.folder import RunFolder


def run_names(runs: Sequence[Path]) -> list[str]:
    """Return the runs' names: those of their folders, numbered where two are equal."""
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
    differences: list[Row] = []
    for name, run, theirs in zip(names[1:], contents[1:], cases[1:], strict=True):
        settings = _settings(contents[0], run)
        differences += compare([*cases[0], *theirs], settings, model=name, correct=False)
    return own + holm_corrected(differences)


def _settings(first: Run, other: Run) -> SummarySettings:
    return SummarySettings(
        round=max((row.round for row in other.rows), default=0),
        seed=first.facts.seed,
        classes=first.facts.classes,
        # A hospital that trained in one of the runs is no fair test of both.
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
    found = comparison_rows(runs)
    out.mkdir(parents=True, exist_ok=True)
    rows.write(out / "runs.jsonl", found)
    rows.write_csv(out / "runs.csv", found)
    write_whole(out / "runs.html", page(run_names(runs), found), durable=True)
    return out / "runs.html"


def page(names: Sequence[str], rows_shown: Sequence[Row]) -> str:
    """Return the page: a table for each headline metric and structure that the runs have."""
    tables = [
        _table(names, rows_shown, metric.name, structure)
        for metric in headline_metrics()
        if metric.compared
        for structure in sorted(
            {row.structure for row in rows_shown if row.metric == metric.name}, key=lambda s: s or ""
        )
    ]
    body = "".join(tables) or "<p>The runs have no result that may be shown.</p>"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(', '.join(names))}: compared</title>\n<style>\n{style()}</style>\n</head>\n<body>\n"
        '<div class="page">\n<main>\n'
        f'<p class="headline">{len(names)} runs compared</p>\n'
        f'<p class="second">Each run\'s federated model with its 95 % interval, and its difference to '
        f"{escape(names[0])}, paired by patient; p values are corrected by Holm within a hospital. "
        "A difference is given only if this machine holds the case rows of both runs."
        f"</p>\n{body}\n</main>\n"
        "<footer>Made by medfed from aggregated rows. This file contains no images, no rows of single "
        "patients and no case ids.</footer>\n</div>\n</body>\n</html>\n"
    )


def _table(names: Sequence[str], found: Sequence[Row], metric: str, structure: str | None) -> str:
    some = [row for row in found if (row.metric, row.structure) == (metric, structure)]
    sites = sorted(
        {row.site for row in some if row.value is not None}, key=lambda site: (site == ALL_SITES, site)
    )
    if not sites:
        return ""
    by = {(row.model, row.site, row.against): row for row in some}
    about = metric_of(metric)
    title = f"{about.title}{f', {structure}' if structure else ''}"
    heads = "".join(f'<th scope="col">{escape(site_name(site))}</th>' for site in sites)
    lines = []
    for name in names:
        cells = "".join(
            f"<td>{_cell(by.get((name, site, None)), by.get((name, site, names[0])))}</td>" for site in sites
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<section>\n<h2>{escape(title)}</h2>\n<div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(title, quote=True)}">\n<table class="stack">\n'
        f"<caption>{escape(about.description)}</caption>\n"
        f'<thead><tr><th scope="col">Run</th>{heads}</tr></thead>\n'
        f"<tbody>\n{''.join(lines)}\n</tbody>\n</table>\n"
        "</div>\n</section>\n"
    )


def _cell(row: Row | None, difference: Row | None) -> str:
    if row is None or row.value is None:
        return '<span class="soft">–</span>'
    metric = metric_of(row.metric)
    text = f'{number(row.value, metric, fine=True)} <span class="ci">{interval(row, fine=True)}</span>'
    if difference is not None and difference.value is not None:
        p = f", p {p_value(difference.p)}" if difference.p is not None else ""
        text += (
            f' <small class="soft">{number(difference.value, metric, sign=True)} '
            f"({interval(difference, sign=True)}){escape(p)}</small>"
        )
    return text
