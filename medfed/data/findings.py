"""Several findings per image, read from the columns of the site's table of cases.

Each finding has a column of its own with 1 (present), 0 (absent) or an empty cell (not labelled). Or one
column holds the words of the findings that are present, separated by `|`. A cell is refused rather than
guessed, and messages name the case by token and the column, never the cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from medfed.data.case import Case
from medfed.data.csv_table import EMPTY_CELLS
from medfed.data.settings import FindingWords
from medfed.errors import DataError

# One number per finding: 1 present, 0 absent, NaN not labelled.
Findings = tuple[float, ...]

_VALUES = {0.0, 1.0}


def read_findings(
    cases: Sequence[Case], names: Sequence[str], words: FindingWords | None
) -> dict[str, Findings]:
    """Return the findings of each case that has a labelled one, by its token; the others are left out.

    Raises:
        DataError: for a column that no case has, or naming the first case whose cell cannot be read.
    """
    check_finding_columns(cases, names, words)
    labelled = {}
    for case in cases:
        findings = findings_of(case, names, words)
        if not all(map(math.isnan, findings)):
            labelled[case.token] = findings
    return labelled


def check_finding_columns(cases: Iterable[Case], names: Sequence[str], words: FindingWords | None) -> None:
    """Check that the site's table has each column of findings.

    Raises:
        DataError: naming the column that is missing, and the study's key that asks for it.
    """
    columns = sorted({column for case in cases for column in case.attributes})
    wanted = names if words is None else (words.column,)
    for name in wanted:
        if name.lower() not in columns:
            near = get_close_matches(name.lower(), columns, n=1, cutoff=0.8)
            hint = f"; is it '{near[0]}'? rename that column" if near else ""
            raise DataError(
                f"the site's table of cases has no column '{name}', which the study predicts{hint}; add it, "
                "with 1, 0, or nothing where the finding was not labelled"
                if words is None
                else f"the site's table of cases has no column '{name}' (data.findings.column){hint}"
            )


def findings_of(case: Case, names: Sequence[str], words: FindingWords | None) -> Findings:
    """Return a case's findings, one number per name: 1 present, 0 absent, NaN not labelled.

    Raises:
        DataError: naming the case by token, and the column.
    """
    try:
        if words is not None:
            return _from_words(case.attributes.get(words.column.lower(), ""), names, words)
        return tuple(_from_cell(case.attributes.get(name.lower(), ""), name) for name in names)
    except DataError as error:
        raise DataError(f"case {case.token}: {error}") from None


def _from_cell(cell: str, name: str) -> float:
    if cell.lower() in EMPTY_CELLS:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if value not in _VALUES:
        raise DataError(
            f"the column '{name}' is neither 1 (present), 0 (absent) nor empty (not labelled); correct the "
            "cell, and leave it empty where the finding is uncertain"
        )
    return value


def _from_words(cell: str, names: Sequence[str], words: FindingWords) -> Findings:
    """Return the findings that a cell of words names; an empty cell was not labelled."""
    if not cell:
        return (math.nan,) * len(names)
    present = {word.strip().lower() for word in cell.split(words.separator)} - {""}
    unknown = present - {name.lower() for name in (*names, *words.ignored, words.none)}
    if unknown or not present:
        raise DataError(
            f"the column '{words.column}' has {len(unknown)} words that are no finding of the study; correct "
            f"them, or list other findings in data.findings.ignored; there are {', '.join(names)}, and "
            f"'{words.none}' where nothing was found"
        )
    if words.none.lower() in present and len(present) > 1:
        raise DataError(f"the column '{words.column}' says '{words.none}' beside a finding; correct the cell")
    return tuple(float(name.lower() in present) for name in names)


def binary_columns(cases: Sequence[Case]) -> list[str]:
    """Return the columns of the site's table that hold only 0, 1 and empty cells, with both numbers."""
    values: dict[str, set[str]] = {}
    for case in cases:
        for name, cell in case.attributes.items():
            values.setdefault(name, set()).add(_plain(cell))
    return [name for name, cells in values.items() if {"0", "1"} <= cells and cells <= {"0", "1", ""}]


def _plain(cell: str) -> str:
    known: Mapping[str, str] = {"0.0": "0", "1.0": "1"}
    return "" if cell.lower() in EMPTY_CELLS else known.get(cell, cell)
