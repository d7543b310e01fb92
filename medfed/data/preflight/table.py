"""The preflight of a hospital's table: its columns, its empty cells, and what a study would refuse.

With a study the table is opened exactly as training opens it (`SiteDataModule.open`), so that the two never
disagree. Without one, everything that does not depend on a study is checked by the same reader.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medfed.data.batch_needs import Needs
from medfed.data.identifiers import MEANINGS, Kind, kind_by_cells, kind_by_heading, shown_heading
from medfed.data.own_data import OwnData
from medfed.data.patients import patients_of
from medfed.data.preflight.issues import SEVERITIES, Problem, Severity
from medfed.data.preflight.preflight import Preflight
from medfed.data.settings import Table
from medfed.data.site_table import (
    SiteTable,
    filled_cells,
    is_empty,
    is_number,
    open_table,
    with_decimal_points,
)
from medfed.data.table_findings import number_findings
from medfed.errors import DataError

# A column with a larger share of empty cells than this is reported.
MOSTLY_EMPTY = 0.5


@dataclass(frozen=True)
class TableRequirements:
    """What a study needs of a table, and the site's own headings for its columns."""

    study: str
    settings: Table
    needs: Needs
    classes: tuple[str, ...] = ()
    own_headings: Mapping[str, str] = field(default_factory=dict)
    # Whether the site trains; a hospital that is held out only measures models.
    trains: bool = True


def check_table(
    path: Path, requirements: TableRequirements | None = None, *, site_secret: bytes | None = None
) -> Preflight:
    """Return the contents of a site's table and whether a study accepts it; cells are never shown.

    Raises:
        DataError: if the file does not exist.
    """
    if not path.exists():
        raise DataError("there is no such file; name the hospital's CSV, TSV or XLSX file")
    facts: dict[str, Any] = {"what it is": "a table", "columns": {}}
    problems: list[Problem] = []
    usable: Counter[str] = Counter()
    try:
        if requirements is not None:
            key = site_secret if site_secret is not None else secrets.token_bytes(32)
            usable, found = _study_problems(path, requirements, key, facts)
            problems += found
        table = open_table(path, own_headings=requirements.own_headings if requirements else {})
        facts |= {"what it is": "a table, one row per case", "rows": len(table.lines)}
        problems += _table_problems(table, requirements, facts)
    except DataError as error:
        title = "The table can't be used as it is"
        problems.append(
            _problem("error", title, "Training refuses it.", "Follow the line below.", [str(error)])
        )
    problems.sort(key=lambda p: SEVERITIES.index(p.severity))
    study = requirements.study if requirements is not None else ""
    errors = sum(p.severity == "error" for p in problems)
    purpose = f" take part in '{study}'" if study else " be used"
    verdict = f"This table can't{purpose} yet: {errors} errors." if errors else f"This table can{purpose}."
    can_take_part = None if requirements is None else not errors
    return Preflight(verdict, facts, tuple(problems), (), study, can_take_part, usable)


def _study_problems(
    path: Path, requirements: TableRequirements, key: bytes, facts: dict[str, Any]
) -> tuple[Counter[str], list[Problem]]:
    """Return the cases by split, as training opens the table; add them to `facts`.

    Raises:
        DataError: as training does.
    """
    from medfed.data.datamodule import SiteDataModule

    settings, classes = requirements.settings, requirements.classes
    data = SiteDataModule.open(
        path,
        settings,
        requirements.needs,
        site_secret=key,
        classes=len(classes) or None,
        own=OwnData(headings=requirements.own_headings),
    )
    cases = data.index.cases
    splits = Counter(case.split for case in cases)
    facts["cases"] = f"{len(cases)} of {data.index.patients} patients"
    facts["splits"] = ", ".join(f"{count} {split}" for split, count in sorted(splits.items()))
    notes = [note for note in data.notes if note not in data.warnings]
    problems = []
    if notes:
        problems.append(_problem("note", "Worth knowing", "", "", notes))
    if data.warnings:
        title, means = "Data that may mean something else", "A model would learn it as it stands."
        problems.append(_problem("warning", title, means, "Follow the lines below.", data.warnings))
    if requirements.trains:
        data.require_training_cases()
    present = {case.target for case in cases if case.split == "train"}
    missing = [name for number, name in enumerate(classes) if number not in present]
    if settings.target is not None and missing:
        title, remedy = "Data that fit the study badly", "Talk to the coordinator."
        detail = f"no training row has class {', '.join(missing)}"
        problems.append(_problem("warning", title, "", remedy, [detail]))
    return splits, problems


def _table_problems(
    table: SiteTable, requirements: TableRequirements | None, facts: dict[str, Any]
) -> list[Problem]:
    """Add a line on each column to `facts`, and return what is odd about columns and rows."""
    if not table.lines:
        return [_problem("error", "No rows", "There is nothing to train on.", "Add rows.", [])]
    used = None if requirements is None else {name.lower() for name in requirements.settings.features}
    problems, sparse, odd = _row_problems(table), [], []
    for name, cells in table.columns.items():
        kind = None if used is not None and name in used else kind_by_heading(name) or kind_by_cells(cells)
        shown = name if kind is None else shown_heading(name, table.positions[name])
        filled = filled_cells(cells)
        empty = len(cells) - len(filled)
        facts["columns"][shown] = _describe(filled, len(cells), kind)
        if kind is None and (used is None or name in used) and empty > MOSTLY_EMPTY * len(cells):
            sparse.append(f"column '{name}': {empty} of {len(cells)} rows")
        if kind is None and requirements is None:
            odd += _odd_numbers(name, cells)
    if sparse:
        remedy = "Check whether the export omitted them."
        problems.append(_problem("warning", "Columns that are mostly empty", "", remedy, sparse))
    if odd:
        title, means = "Columns that may mean something else", "A model would learn them as they stand."
        problems.append(_problem("warning", title, means, "Follow the lines below.", odd))
    if requirements is None:
        notes = [*table.notes, *patients_of(table.columns, table.lines, "patient")[1]]
        if notes:
            problems.append(_problem("note", "Worth knowing", "", "", notes))
    return problems


def _row_problems(table: SiteTable) -> list[Problem]:
    rows = list(zip(*table.columns.values(), strict=True))
    repeated = len(rows) - len(set(rows))
    if not repeated:
        return []
    detail = f"{repeated} rows repeat an earlier one, cell by cell"
    return [_problem("warning", "Rows that repeat", "They count twice.", "Keep one of each.", [detail])]


def _describe(filled: Sequence[str], rows: int, kind: Kind | None) -> str:
    if kind is not None:
        use = "keeps a patient's rows together, never" if kind == "patient" else "never"
        return f"{MEANINGS[kind]}: {use} learned from"
    text = "empty"
    if filled:
        numbers = all(is_number(cell.replace(",", ".", 1)) for cell in filled)
        text = f"{'numbers' if numbers else 'words'}, {len(set(filled))} different"
    return f"{text}, {rows - len(filled)} of {rows} empty"


def _odd_numbers(name: str, cells: Sequence[str]) -> list[str]:
    """Return what is odd about a column, if it holds numbers."""
    try:
        cells = with_decimal_points(cells, name)
    except DataError as error:
        return [str(error)]
    filled = [cell for cell in cells if not is_empty(cell)]
    if not filled or not all(map(is_number, filled)):
        return []
    return number_findings(name, np.array([np.nan if is_empty(cell) else float(cell) for cell in cells]))


def _problem(severity: Severity, title: str, means: str, remedy: str, details: Sequence[str]) -> Problem:
    return Problem("table", severity, title, means, remedy, tuple(("", detail) for detail in details))
