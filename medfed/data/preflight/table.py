"""Whether a hospital's CSV file can be trained on: its columns, what is empty, and what a study would refuse."""

from __future__ import annotations

import csv
import secrets
from collections import Counter
from pathlib import Path
from typing import Any

from medfed.data.layouts.cases_csv import read_rows
from medfed.data.preflight.preflight import SEVERITIES, Problem, Severity
from medfed.data.preflight.preflight import Preflight as _Preflight
from medfed.data.settings import Table
from medfed.errors import DataError

# A cell that says 'not measured', as in table.py, which can't be imported without torch.
_EMPTY = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "."})
# A column that is empty in more than this part of the rows is told.
MOSTLY_EMPTY = 0.5


def check_table(
    path: Path,
    settings: Table | None,
    *,
    classes: tuple[str, ...] = (),
    study: str = "",
    site_secret: bytes | None = None,
) -> _Preflight:
    """Return what is in a site's CSV file, and whether a study would take it. Columns are told, cells never.

    Raises:
        DataError: if the file is not there.
    """
    if not path.exists():
        raise DataError("there is no such file; name the hospital's CSV file")
    problems: list[Problem] = []
    facts: dict[str, Any] = {"what it is": "a table", "columns": {}}
    try:
        names, rows = _columns(path)
        facts |= {"what it is": "a table, a row a case", "rows": len(rows)}
        asked = {name.lower() for name in settings.features} if settings is not None else set(names)
        sparse: list[tuple[str, str]] = []
        for number, name in enumerate(names):
            cells = [row[number] for row in rows]
            empty = sum(cell.lower() in _EMPTY for cell in cells)
            # Without a study nothing says that the first line is a heading and not the first patient.
            shown = name if settings is not None and name in asked else f"{number + 1}"
            facts["columns"][shown] = f"{_sort(cells)}, {empty} of {len(cells)} empty"
            if name in asked and rows and empty > MOSTLY_EMPTY * len(rows):
                sparse.append(("", f"column {shown}: {empty} of {len(rows)} rows"))
        if sparse:
            title, cure = "Columns that are mostly empty", "Look whether the export left them out."
            problems.append(Problem("table", "warning", title, "", cure, tuple(sparse)))
        twice = [n for n in Counter(map(tuple, rows)).values() if n > 1]
        if twice:
            detail = f"{sum(twice) - len(twice)} rows repeat an earlier one, cell by cell"
            problems.append(
                _problem("warning", "Rows that repeat", "They count twice.", "Keep one of each.", detail)
            )
        if not rows:
            problems.append(_problem("error", "No rows", "There is nothing to train on.", "Add rows.", ""))
        if settings is not None:
            problems += _against(path, settings, classes, site_secret, facts)
    except (DataError, csv.Error) as error:
        text = str(error) if isinstance(error, DataError) else "a line can't be read"
        problems.append(
            _problem("error", "The table can't be used as it is", "Training refuses it.", "As it says.", text)
        )
    problems.sort(key=lambda p: SEVERITIES.index(p.severity))
    errors = sum(p.severity == "error" for p in problems)
    whose = f" take part in '{study}'" if study else " be used"
    verdict = f"This table can't{whose} yet: {errors} errors." if errors else f"This table can{whose}."
    return _Preflight(verdict, facts, tuple(problems), (), study, None if settings is None else not errors)


def _columns(path: Path) -> tuple[list[str], list[list[str]]]:
    from medfed.data.layouts._layout import visible

    if path.is_dir():
        files = [file for file in visible(path) if file.suffix.lower() in (".csv", ".tsv")]
        if len(files) != 1:
            raise DataError(f"the folder holds {len(files)} CSV files, one is due; name the file")
        path = files[0]
    rows = read_rows(path, "the site's table")
    return next(rows)[1], [cells for _, cells in rows]


def _sort(cells: list[str]) -> str:
    filled = [cell for cell in cells if cell.lower() not in _EMPTY]
    try:
        values = [float(cell) for cell in filled]
    except ValueError:
        return f"words, {len(set(filled))} different"
    if not values:
        return "empty"
    return f"numbers, {len(set(values))} different"


def _against(
    path: Path, settings: Table, classes: tuple[str, ...], site_secret: bytes | None, facts: dict[str, Any]
) -> list[Problem]:
    from medfed.data.table import read_table

    key = site_secret if site_secret is not None else secrets.token_bytes(32)
    rows = read_table(path, settings, site_secret=key, classes=len(classes) or None)
    cases = rows.index.cases
    facts["cases"] = f"{len(cases)} of {rows.index.patients} patients"
    facts["splits"] = ", ".join(
        f"{n} {split}" for split, n in sorted(Counter(case.split for case in cases).items())
    )
    found = [_problem("note", "Worth knowing", "", "", note) for note in rows.index.notes]
    present = {case.target for case in cases if case.split == "train"}
    rare = [name for number, name in enumerate(classes) if number not in present]
    if settings.target is not None and rare:
        told = f"no training row has class {', '.join(rare)}"
        found.append(_problem("warning", "What fits the study badly", "", "Talk to the coordinator.", told))
    return found


def _problem(severity: Severity, title: str, means: str, cure: str, detail: str) -> Problem:
    return Problem("table", severity, title, means, cure, (("", detail),))
