"""The guarantees as sentences: what a hospital may rely on at which threshold, or why there is none."""

from __future__ import annotations

from typing import Any

from medfed.evaluation.guarantees import COVERED, FOUND, HELD, PREFIX, SENSITIVITY, SET, VOXELS
from medfed.evaluation.report.formatting import interval, number, site_name
from medfed.evaluation.report.run import Run
from medfed.evaluation.rows import ALL_SITES, EVERY_SITE, Row

# What succeeds in a patient, after "in at least 90 % of patients".
SUCCEEDS = {
    FOUND: "it is found",
    COVERED: "at least 90 % of its voxels are found",
    SENSITIVITY: "those with {what} are called",
    SET: "the classes above the threshold hold the true one",
}


def guarantees(run: Run) -> list[dict[str, Any]]:
    """Return one table per guarantee: a line per hospital, then the pooled threshold and the least one."""
    rows = [row for row in run.rows if row.metric.startswith(PREFIX)]
    held = {(row.site, row.metric.removeprefix(HELD), row.structure): row for row in run.rows
            if row.metric.startswith(HELD)}  # fmt: skip
    latest = max((row.round for row in rows), default=0)
    tables: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        if row.round == latest:
            tables.setdefault((row.metric.removeprefix(PREFIX), row.structure), []).append(row)
    return [
        {
            "what": title(run, kind, structure),
            "nowhere": _nowhere(some),
            "lines": [_line(row, held.get((row.site, kind, structure))) for row in sorted(some, key=_place)],
        }
        for (kind, structure), some in tables.items()
    ]


def title(run: Run, kind: str, structure: str | None) -> str:
    """Return what is guaranteed: 'In at least 90 % of patients with lesion it is found, ...'."""
    evaluation = run.study.section("evaluation")
    share, confidence = (float(evaluation.get(name) or 0) for name in ("guarantee", "confidence"))
    classes = run.facts.classes
    what = structure or (classes[1] if len(classes) == 2 else "it")
    if kind == VOXELS:
        return f"On average at least {share:.0%} of the voxels of {what} are found".replace("% of", " % of")
    sure = "on average" if kind == SET else f"with {confidence:.0%} confidence".replace("%", " %")
    succeeds = SUCCEEDS.get(kind, kind).format(what=what)
    patients = {SET: "patients", SENSITIVITY: "those who have it"}.get(kind, f"patients with {what}")
    if kind == SENSITIVITY:
        succeeds = f"{what} is called"
    return f"In at least {share:.0%} of {patients} {succeeds}, {sure}".replace("% of ", " % of ", 1)


def caveat(run: Run) -> str:
    """Return what weakens every guarantee of a run: that its validation patients also chose the model."""
    return (
        "The model was chosen by its scores in the same validation patients, so a guarantee may hold "
        "somewhat less often than stated."
        if run.facts.chosen and run.facts.chosen.by_validation
        else ""
    )


def relied_on(run: Run, place: str) -> list[str]:
    """Return what may be relied on at a place, and at each hospital of the study, as sentences."""
    found = []
    for row in run.rows:
        if row.metric.startswith(PREFIX) and row.value is not None and row.site in (place, EVERY_SITE):
            where = "each hospital of the study" if row.site == EVERY_SITE else site_name(place)
            what = title(run, row.metric.removeprefix(PREFIX), row.structure)
            found.append(f"{what}, at {where} at a threshold of {row.value:.2f}.")
    return found


def _nowhere(rows: list[Row]) -> str:
    """Return each hospital's reason if no row has a threshold, else ''."""
    if any(row.value is not None for row in rows):
        return ""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.site not in (ALL_SITES, EVERY_SITE):
            reasons.setdefault((row.note or "").removeprefix("no guarantee: "), []).append(row.site)
    return "; ".join(f"{', '.join(sorted(sites))}: {why}" for why, sites in reasons.items()) + "."


def _line(row: Row, held: Row | None) -> dict[str, Any]:
    name = {ALL_SITES: "all patients pooled", EVERY_SITE: "each hospital: the least of their thresholds"}
    return {
        "site": name.get(row.site, site_name(row.site)),
        "threshold": "–" if row.value is None else f"{row.value:.2f}",
        "n": row.n,
        "why": row.note if row.value is None else "",
        "held": "" if held is None or held.value is None
        else f"{number(held.value, fine=True)} ({interval(held, fine=True)}) of {held.n}",
    }  # fmt: skip


def _place(row: Row) -> tuple[int, str]:
    return {ALL_SITES: 1, EVERY_SITE: 2}.get(row.site, 0), row.site
