"""Several runs side by side: one row a run and hospital, and the difference to the first
run, paired by patient.

A paired difference needs the case rows of both runs, so it can be made where the patients are; elsewhere the
runs' own rows stand beside each other and nothing is tested. Rows come first (`runs.jsonl`, `runs.csv`), the
page second (`runs.html`); the page holds no case and no patient's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import msgspec

from medfed.errors import RunError
from medfed.evaluation import comparisons, report, rows
from medfed.evaluation.metrics import headline_metrics, metric_of
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.rows import ALL_SITES, FEDERATED, CaseRow, Row
from medfed.files import write_whole

HEADLINE = tuple(metric.name for metric in headline_metrics() if metric.compared)


def names_of(runs: Sequence[Path]) -> list[str]:
    """Return what each run is called: its folder's name, numbered where two are alike."""
    found: list[str] = []
    for run in runs:
        name, number = run.resolve().name, 2
        while name in found:
            name = f"{run.resolve().name}-{number}"
            number += 1
        found.append(name)
    return found


def rows_of(runs: Sequence[Path]) -> list[Row]:
    """Return each run's federated rows with the run's name as the model, and the differences
    to the first run.

    Raises:
        RunError: a folder is no finished run.
        DataError: case rows that contradict each other.
    """
    names = names_of(runs)
    read = [report.read_run(run) for run in runs]
    found = [
        msgspec.structs.replace(row, model=name)
        for name, one in zip(names, read, strict=True)
        for row in one.rows
        if row.model == FEDERATED and row.split == "test" and row.group is None and row.against is None
    ]
    cases = [_cases(run, name) for run, name in zip(runs, names, strict=True)]
    first = read[0]
    differences: list[Row] = []
    for name, one, theirs in zip(names[1:], read[1:], cases[1:], strict=True):
        # Both runs' hospitals that took no part in either: a hospital that trained in one is no fair
        # test of both.
        apart = sorted({*first.about.get("held_out", []), *one.about.get("held_out", [])})
        settings = SummarySettings(
            round=max((row.round for row in one.rows), default=0),
            seed=int(first.about.get("seed") or 0),
            classes=[str(label) for label in first.about.get("classes") or ()],
            held_out=apart,
            min_patients=max(first.study.min_patients, one.study.min_patients),
            draws=first.study.draws,
        )
        differences += comparisons.compare([*cases[0], *theirs], settings, model=name, correct=False)
    return found + comparisons.holm_corrected(differences)


def _cases(run: Path, name: str) -> list[CaseRow]:
    path = run / "cases.jsonl"
    if not path.is_file():
        return []
    return [
        msgspec.structs.replace(case, model=name)
        for case in rows.read_cases(path)
        if case.model == FEDERATED and case.condition is None
    ]


def write_several(runs: Sequence[Path], out: Path) -> Path:
    """Write `runs.jsonl`, `runs.csv` and `runs.html` into `out`, and return the page's path.

    Raises:
        RunError: fewer than two runs, or a folder is no finished run.
    """
    if len(runs) < 2:
        raise RunError("one run has its own report; name two runs or more to compare them")
    found = rows_of(runs)
    out.mkdir(parents=True, exist_ok=True)
    rows.write(out / "runs.jsonl", found)
    rows.write_csv(out / "runs.csv", found)
    write_whole(out / "runs.html", page(names_of(runs), found), durable=True)
    return out / "runs.html"


def page(names: Sequence[str], found: Sequence[Row]) -> str:
    """Return the page: a table for each headline metric and structure that the runs have."""
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    tables = [
        _table(names, found, metric, structure)
        for metric in HEADLINE
        for structure in sorted(
            {row.structure for row in found if row.metric == metric}, key=lambda s: s or ""
        )
    ]
    body = "".join(tables) or "<p>The runs have no result that may be shown.</p>"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(', '.join(names))}: compared</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<div class="page">\n<main>\n'
        f'<p class="headline">{len(names)} runs compared</p>\n'
        f'<p class="second">Each run\'s federated model with its 95 % interval, and its difference to '
        f"{escape(names[0])}, paired by patient; p values are corrected by Holm within a hospital. A difference stands "
        "only where both runs' case "
        f"rows are in this place.</p>\n{body}\n</main>\n"
        "<footer>Made by medfed from aggregated rows. No image, no patient's row and no case id is in this file."
        "</footer>\n</div>\n</body>\n</html>\n"
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
    heads = "".join(f'<th scope="col">{escape(report.site_name(site))}</th>' for site in sites)
    lines = []
    for name in names:
        cells = "".join(
            f"<td>{_cell(by.get((name, site, None)), by.get((name, site, names[0])))}</td>" for site in sites
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<section>\n<h2>{escape(title)}</h2>\n<div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(title, quote=True)}">\n<table class="stack">\n<caption>{escape(about.description)}</caption>\n'
        f'<thead><tr><th scope="col">Run</th>{heads}</tr></thead>\n<tbody>\n{"".join(lines)}\n</tbody>\n</table>\n'
        "</div>\n</section>\n"
    )


def _cell(row: Row | None, difference: Row | None) -> str:
    if row is None or row.value is None:
        return '<span class="soft">–</span>'
    metric = metric_of(row.metric)
    text = f'{report.number(row.value, metric, fine=True)} <span class="ci">{report.interval(row, fine=True)}</span>'
    if difference is not None and difference.value is not None:
        p = f", p {report.p_value(difference.p)}" if difference.p is not None else ""
        text += (
            f' <small class="soft">{report.number(difference.value, metric, sign=True)} '
            f"({report.interval(difference, sign=True)}){escape(p)}</small>"
        )
    return text
