"""What only the owner of a hospital's data sees: each patient's value, where the report withholds the mean.

It is printed on the machine that measured and written to no file; `cases.jsonl`, which holds it, stays there.
"""

from __future__ import annotations

from pathlib import Path

from medfed.evaluation.metrics import metric_of
from medfed.evaluation.patients import FINDING, OVERLAP, PROBABILITY, RISK
from medfed.evaluation.report.formatting import number
from medfed.evaluation.rows import FEDERATED, CaseRow, Row, read_cases, read_rows, unperturbed
from medfed.runs.folder import RunFolder

# The values of single cases by which a patient is described.
DESCRIBED = (OVERLAP, PROBABILITY, FINDING, RISK)
# More values than this are in `cases.jsonl` alone.
MAX_VALUES = 40


def own_values(run: Path, site: str) -> list[str]:
    """Return a line per structure with each patient's value, for what is withheld of a hospital's results.

    The lines name single patients' values: print them to the hospital's own staff, and store them nowhere.
    """
    folder = RunFolder(run)
    if not folder.cases.is_file():
        return []
    withheld = [row for row in read_rows(folder.rows) if _is_withheld(row, site)]
    whole = any(row.metric == "patients" for row in withheld)
    structures = {row.structure for row in withheld}
    cases = [
        case
        for case in unperturbed(read_cases(folder.cases))
        if (case.site, case.model, case.split) == (site, FEDERATED, "test")
        and case.metric in DESCRIBED
        and (whole or case.structure in structures)
    ]
    lines: dict[str, list[str]] = {}
    for case in cases:
        title = "" if case.metric == PROBABILITY else metric_of(case.metric).title
        lines.setdefault(f"{case.structure or ''} {title}".strip(), []).append(_shown(case))
    return [
        f"{name}: {', '.join(values[:MAX_VALUES])}{' ...' if len(values) > MAX_VALUES else ''}"
        for name, values in lines.items()
    ]


def _is_withheld(row: Row, site: str) -> bool:
    about = (row.site, row.model, row.split, row.group, row.against)
    few = row.value is None and "fewer than" in (row.note or "")
    described = row.metric == "patients" or row.metric in DESCRIBED
    return about == (site, FEDERATED, "test", None, None) and few and described


def _shown(case: CaseRow) -> str:
    if case.value is None or case.note:
        return case.note or "no value"
    text = number(case.value)
    if case.target is None:
        return text
    if case.metric == RISK:
        return f"{text} ({'event' if case.event else 'censored'} at {case.target:g})"
    return f"{text} ({'has it' if case.target else 'has it not'})"
