"""Models against each other: at one hospital, at every hospital, in every metric, and in subgroups."""

from __future__ import annotations

from typing import Any

from medfed.evaluation.guarantees import PREFIX, RISK
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.report import charts
from medfed.evaluation.report.focus import Focus, FocusRows, counted_of_those_concerned
from medfed.evaluation.report.formatting import interval, is_narrow, model_name, number
from medfed.evaluation.report.run import Run
from medfed.evaluation.robustness import CONDITION
from medfed.evaluation.rows import ALL_SITES, FEDERATED, SITE_MEAN, UNTRAINED, Row


def comparison(run: Run, focus: Focus, rows: FocusRows, site: str) -> dict[str, Any]:
    """Return one hospital's table of models, each with its interval drawn and its difference."""
    metric = focus.record
    # Models without a hospital, and those made for one, have tables of their own.
    models = [model for model in run.models if not model.startswith(("without:", "personal:", "seed:"))]
    shown = [row for model in models if (row := rows.get(site, model)) is not None]
    axis = charts.span(
        [bound for row in shown if row.model != UNTRAINED for bound in (row.value, row.low, row.high)],
        metric.lowest,
        metric.highest,
    )
    ours = rows.get(site, FEDERATED)
    lines = []
    methods, notes = set(), []
    for row in shown:
        versus = rows.get(site, FEDERATED, against=row.model)
        lines.append({"row": row, "versus": versus, "graph": _whisker(row, axis, ours)})
        if versus is not None and versus.p is not None:
            methods.add(str(versus.method))
        if versus is not None and row.model != UNTRAINED and "patients" in (versus.note or ""):
            notes.append((model_name(row.model), versus.note))
    beside_local = any(":" in row.model for row in shown)
    return {
        "site": site,
        "lines": lines,
        "scale": charts.scale(axis),
        "fine": is_narrow(ours),
        "title": "Against each hospital alone" if beside_local else "Against other models",
        "method": ours.method if ours else None,
        "methods": sorted(methods),
        "notes": notes,
        "n": ours.n if ours else None,
    }


def _whisker(row: Row, axis: tuple[float, float], ours: Row | None) -> str:
    # A model far off the axis would be drawn at its edge, which would show a wrong number.
    if row.value is None:
        return ""
    if not axis[0] <= row.value <= axis[1]:
        return '<small class="soft">off the scale</small>'
    title = f"{model_name(row.model)}: {number(row.value, metric_of(row.metric))}, {interval(row)}"
    estimate, reference = (row.value, row.low, row.high), ours.value if ours else None
    return charts.whisker(estimate, axis, reference, strong=row.model == FEDERATED, title=title)


def matrix(run: Run, focus: Focus, rows: FocusRows) -> dict[str, Any] | None:
    """Return every model at every hospital, with each cell's share of the range of values."""
    models = [name for name in run.models if name != UNTRAINED and not name.startswith(("without:", "seed:"))]
    sites = [*run.facts.sites, ALL_SITES, SITE_MEAN, *run.facts.held_out]
    shown = {row.site for row in run.rows if row.metric == focus.metric and row.value is not None}
    # Hospitals too small to be shown have no column; all of them together then stand for them.
    known = [site for site in sites if site in shown]
    every = {*run.facts.sites, *run.facts.held_out} <= shown
    columns = [site for site in known if site != ALL_SITES or not every]
    table = {model: [rows.get(site, model) for site in columns] for model in models}
    values = [row.value for line in table.values() for row in line if row and row.value is not None]
    if len(models) < 2 or len(values) < 4:
        return None
    low, high = min(values), max(values)

    def share(row: Row | None) -> float:
        if row is None or row.value is None or high <= low:
            return 0.0
        part = (row.value - low) / (high - low)
        return round(1 - part if focus.record.better == "lower" else part, 3)

    lines = []
    for model, line in table.items():
        cells = [
            {"row": row, "share": share(row), "home": model.endswith(f":{site}")}
            for site, row in zip(columns, line, strict=True)
        ]
        lines.append((model, cells))
    return {"sites": columns, "lines": lines}


def measures(run: Run, focus: Focus) -> dict[str, Any]:
    """Return every metric of the federated model by structure, in the order of the metrics' ranks."""
    # Guaranteed thresholds have a section of their own.
    ours = [
        row
        for row in counted_of_those_concerned(run.rows)
        if row.model == FEDERATED and row.split == focus.split and not row.metric.startswith((PREFIX, RISK))
    ]
    first = [*run.facts.held_out, ALL_SITES, SITE_MEAN]
    sites = sorted(
        {row.site for row in ours if row.value is not None},
        key=lambda site: (first.index(site) if site in first else len(first), site),
    )
    table = {
        (row.structure, row.metric, row.site): row
        for row in ours
        if row.round == focus.round and row.group is None and row.against is None and row.metric != "patients"
    }
    names = {(structure, metric) for structure, metric, _ in table}
    structures: dict[str | None, list[tuple[str, list[Row | None]]]] = {}
    for structure, metric in sorted(names, key=lambda name: (name[0] or "", _rank(name[1]))):
        cells = [table.get((structure, metric, site)) for site in sites]
        structures.setdefault(structure, []).append((metric, cells))
    return {"sites": sites, "structures": list(structures.items())}


def _rank(metric: str) -> tuple[int, float, str]:
    at = float(metric.split("@")[1]) if "@" in metric else 0.0
    return metric_of(metric).rank, at, metric


def subgroup_tables(run: Run, focus: Focus) -> list[dict[str, Any]]:
    """Return one table per hospital and attribute: each group's metric and its gap to all others."""
    rows = [
        row
        for row in run.rows
        if row.group is not None
        and (row.split, row.model, row.round) == (focus.split, FEDERATED, focus.round)
        and not row.group.startswith(CONDITION)
    ]
    tables: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        tables.setdefault((row.site, str(row.group).split("=")[0]), []).append(row)
    return [
        _subgroup_table(site, attribute, some)
        for (site, attribute), some in tables.items()
        if any(row.value is not None for row in some)
    ]


def _subgroup_table(site: str, attribute: str, rows: list[Row]) -> dict[str, Any]:
    gaps = {row.group: row for row in rows if row.against is not None}
    lines = [
        {"name": str(row.group).partition("=")[2], "row": row, "gap": gaps.get(row.group)}
        for row in rows
        if row.against is None
    ]
    return {"site": site, "attribute": attribute.replace("_", " "), "metric": rows[0].metric, "lines": lines}
