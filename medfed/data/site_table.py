"""A hospital's table as it is read for every purpose: `medfed check`, `medfed new` and training.

`open_table` alone decides what is a table: its file, its heading, its rows. What it refuses, all refuse.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from medfed.data.csv_table import EMPTY_CELLS, check_columns, read_rows
from medfed.data.identifiers import is_date
from medfed.data.table_file import find_table
from medfed.errors import DataError

WHERE = "the site's table"

# The words for the columns of ids and splits in a site file's `columns`, whatever the study calls them.
ROLES = ("patient", "split")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
# 1,234 is 1.234 in Vienna and 1234 in Boston.
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}[,.]\d{3}")


@dataclass(frozen=True, eq=False, repr=False)
class SiteTable:
    """The columns of a table by heading (in lower case), the rows' numbers, and notes on the reading.

    Columns without a name are left out; `positions` counts them, from 1. It stays in the hospital.
    """

    columns: Mapping[str, tuple[str, ...]]
    positions: Mapping[str, int]
    lines: tuple[int, ...]
    notes: tuple[str, ...] = ()


def open_table(
    path: Path,
    required: Sequence[str] = (),
    own_headings: Mapping[str, str] = MappingProxyType({}),
    where: str = WHERE,
    known: Sequence[str] = (),
) -> SiteTable:
    """Return a site's table, checked.

    Args:
        path: the file, or a folder with only one.
        required: the columns that the study needs.
        own_headings: the site's own heading for a column of the study, by the study's.
        where: the table's name in messages.
        known: columns that need not be there; one that is shows that the first line is a heading.

    Raises:
        DataError: for a file that is no table, rows of different lengths, a heading that is missing, doubled
            or the first patient's row, and a column that is missing.
    """
    notes: list[str] = []
    lines = read_rows(find_table(path), where, notes=notes)
    _, heading = next(lines)
    rows = list(lines)
    headings = _renamed(heading, own_headings, where)
    needed = [name.lower() for name in required]
    _check_is_heading(headings, rows, {*needed, *map(str.lower, known)}, where)
    check_columns(headings, needed, where)
    by_column = zip(*(cells for _, cells in rows), strict=True) if rows else [()] * len(headings)
    columns = {name: cells for name, cells in zip(headings, by_column, strict=True) if name}
    unnamed = sum(not name for name in headings)
    if unnamed:
        notes.append(f"{unnamed} columns have no name and are left out")
    positions = {name: position for position, name in enumerate(headings, start=1)}
    return SiteTable(columns, positions, tuple(number for number, _ in rows), tuple(notes))


def _renamed(headings: Sequence[str], own: Mapping[str, str], where: str) -> list[str]:
    """Return the headings with the site's own words replaced by the study's."""
    names = {word.lower(): name.lower() for name, word in own.items()}
    for word, name in names.items():
        if word not in headings:
            raise DataError(
                f"{where} has no column of the heading that the site file gives for '{name}'; correct "
                f"columns.{name}"
            )
    return [names.get(heading, heading) for heading in headings]


def _check_is_heading(
    headings: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], known: Collection[str], where: str
) -> None:
    """Raise if the first line is the first patient's row, or is repeated below."""
    for number, row in rows:
        if row[0].lower() == headings[0] and [cell.lower() for cell in row] == list(headings):
            raise DataError(f"{where} repeats its heading in row {number}; remove that row")
    if any(name in headings for name in known):
        return
    if not looks_like_data(headings, [cells for _, cells in rows]):
        return
    raise DataError(
        f"{where} has no heading: its first line looks like a row of data; add a line that names the "
        "columns, with names that are no numbers"
    )


def looks_like_data(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a first line holds numbers or dates, or words that its columns hold too."""
    if any(is_number(heading.replace(",", ".")) or is_date(heading) for heading in headings):
        return True
    words = [set(map(str.lower, column)) for column in zip(*rows, strict=True)] if rows else []
    repeated = sum(name in column for name, column in zip(headings, words, strict=False) if name)
    return repeated >= (2 if len(headings) > 3 else 1)


def is_number(cell: str) -> bool:
    """Whether a cell is a number with a decimal point, or a whole one."""
    return _NUMBER.fullmatch(cell) is not None


def is_empty(cell: str) -> bool:
    """Whether a cell says 'not measured'."""
    return cell.lower() in EMPTY_CELLS


def filled_cells(cells: Sequence[str]) -> list[str]:
    """Return the cells of a column that are not empty; among words, 'none' is one of them.

    >>> filled_cells(["none", "typical", "NA"]), filled_cells(["none", "1.5"])
    (['none', 'typical'], ['1.5'])
    """
    filled = [cell for cell in cells if not is_empty(cell)]
    if all(is_number(cell.replace(",", ".", 1)) for cell in filled):
        return filled
    return [cell for cell in cells if not is_empty(cell) or cell.lower() == "none"]


def with_decimal_points(cells: Sequence[str], name: str) -> Sequence[str]:
    """Return a column with decimal commas as one with decimal points; any other column as it is.

    Raises:
        DataError: for a column that mixes both, or whose commas may as well separate thousands.
    """
    if "," not in "".join(cells):
        return cells
    filled = [cell for cell in cells if not is_empty(cell)]
    commas = [cell for cell in filled if "," in cell]
    others = [cell for cell in filled if "," not in cell]
    if not all(map(_DECIMAL_COMMA.fullmatch, commas)) or not all(map(is_number, others)):
        return cells
    if any("." in cell for cell in others):
        raise DataError(
            f"column '{name}' has decimal points in some rows and decimal commas in others; write all alike"
        )
    if all(map(_THOUSANDS.fullmatch, commas)):
        raise DataError(
            f"column '{name}' has three digits after each comma, which may be decimals or thousands; write "
            "it with decimal points, without separators of thousands"
        )
    return [cell.replace(",", ".") for cell in cells]
