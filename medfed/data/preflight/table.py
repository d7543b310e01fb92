"""The preflight of a hospital's CSV file: its columns, its empty cells, and what a study would refuse."""

from __future__ import annotations

import secrets
from collections import Counter
from pathlib import Path
from typing import Any

from medfed.data.csv_table import EMPTY_CELLS, find_table, read_rows
from medfed.data.preflight.issues import SEVERITIES, Problem, Severity
from medfed.data.preflight.preflight import Preflight
from medfed.data.settings import Table
from medfed.errors import DataError

# A column with a larger share of empty cells than this is reported.
MOSTLY_EMPTY = 0.5


def check_table(
    path: Path,
    settings: Table | None,
    *,
    classes: tuple[str, ...] = (),
    study: str = "",
    site_secret: bytes | None = None,
) -> Preflight:
    """Return the contents of a site's CSV file and whether a study accepts it; cells are never shown.

    Raises:
        DataError: if the file does not exist.
    """
    if not path.exists():
        raise DataError("there is no such file; name the hospital's CSV file")
    facts: dict[str, Any] = {"what it is": "a table", "columns": {}}
    problems: list[Problem] = []
    try:
        lines = read_rows(find_table(path), "the site's table")
        names = next(lines)[1]
        rows = [cells for _, cells in lines]
        facts |= {"what it is": "a table, one row per case", "rows": len(rows)}
        problems += _column_problems(names, rows, settings, facts["columns"])
        problems += _row_problems(rows)
        if settings is not None:
            key = site_secret if site_secret is not None else secrets.token_bytes(32)
            problems += _study_problems(path, settings, classes, key, facts)
    except DataError as error:
        title = "The table can't be used as it is"
        problems.append(
            _problem("error", title, "Training refuses it.", "Follow the line below.", str(error))
        )
    problems.sort(key=lambda p: SEVERITIES.index(p.severity))
    errors = sum(p.severity == "error" for p in problems)
    purpose = f" take part in '{study}'" if study else " be used"
    verdict = f"This table can't{purpose} yet: {errors} errors." if errors else f"This table can{purpose}."
    return Preflight(verdict, facts, tuple(problems), (), study, None if settings is None else not errors)


def _column_problems(
    names: list[str], rows: list[list[str]], settings: Table | None, lines: dict[str, str]
) -> list[Problem]:
    """Add a line on each column to `lines`, and return the columns that are mostly empty."""
    used = {name.lower() for name in settings.features} if settings is not None else set(names)
    sparse: list[tuple[str, str]] = []
    for number, name in enumerate(names):
        cells = [row[number] for row in rows]
        empty = sum(cell.lower() in EMPTY_CELLS for cell in cells)
        # Without a study nothing says that the first line is a heading and not the first patient.
        shown = name if settings is not None and name in used else f"{number + 1}"
        lines[shown] = f"{_describe(cells)}, {empty} of {len(cells)} empty"
        if name in used and rows and empty > MOSTLY_EMPTY * len(rows):
            sparse.append(("", f"column {shown}: {empty} of {len(rows)} rows"))
    if not sparse:
        return []
    title, cure = "Columns that are mostly empty", "Check whether the export omitted them."
    return [Problem("table", "warning", title, "", cure, tuple(sparse))]


def _row_problems(rows: list[list[str]]) -> list[Problem]:
    if not rows:
        return [_problem("error", "No rows", "There is nothing to train on.", "Add rows.", "")]
    repeated = len(rows) - len(set(map(tuple, rows)))
    if not repeated:
        return []
    detail = f"{repeated} rows repeat an earlier one, cell by cell"
    return [_problem("warning", "Rows that repeat", "They count twice.", "Keep one of each.", detail)]


def _describe(cells: list[str]) -> str:
    filled = [cell for cell in cells if cell.lower() not in EMPTY_CELLS]
    try:
        values = [float(cell) for cell in filled]
    except ValueError:
        return f"words, {len(set(filled))} different"
    return f"numbers, {len(set(values))} different" if values else "empty"


def _study_problems(
    path: Path, settings: Table, classes: tuple[str, ...], key: bytes, facts: dict[str, Any]
) -> list[Problem]:
    """Read the table as training does; add its cases and splits to `facts`."""
    from medfed.data.table import read_table

    rows = read_table(path, settings, site_secret=key, classes=len(classes) or None)
    cases = rows.index.cases
    splits = Counter(case.split for case in cases)
    facts["cases"] = f"{len(cases)} of {rows.index.patients} patients"
    facts["splits"] = ", ".join(f"{count} {split}" for split, count in sorted(splits.items()))
    problems = [_problem("note", "Worth knowing", "", "", note) for note in rows.index.notes]
    present = {case.target for case in cases if case.split == "train"}
    missing = [name for number, name in enumerate(classes) if number not in present]
    if settings.target is not None and missing:
        title, cure = "Data that fit the study badly", "Talk to the coordinator."
        detail = f"no training row has class {', '.join(missing)}"
        problems.append(_problem("warning", title, "", cure, detail))
    return problems


def _problem(severity: Severity, title: str, means: str, cure: str, detail: str) -> Problem:
    return Problem("table", severity, title, means, cure, (("", detail),))
