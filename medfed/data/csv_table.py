"""Tables of hospitals: rows with the number that a spreadsheet shows, and cells that are read strictly.

Messages name columns and rows, never a cell: a table without a heading line would leak its first patient.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from medfed.data.splits import SPLITS, UNASSIGNED
from medfed.data.table_file import CASE_COLUMNS, read_cells
from medfed.errors import DataError

# Cells that mean 'not measured' in hospitals' exports.
EMPTY_CELLS = frozenset({"", "?", "na", "n/a", "#n/a", "nan", "null", "none", "."})

# A class number above this is an id.
MAX_CLASS = 65_535

# What to do about a row with another number of cells than the heading.
QUOTE = "quote cells that contain the separator"

# Other words for the splits, which are suggested and never taken.
SPLIT_SYNONYMS = {
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "training": "train",
    "testing": "test",
    "tr": "train",
    "ts": "test",
}


def read_rows(
    path: Path, where: str, *, any_length: bool = False, notes: list[str] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the heading in lower case, then each row with its number; blank rows are passed over.

    Commas, semicolons or tabs separate cells. `where` names the file in messages. With `any_length`, rows of
    another number of cells than the heading are yielded, too; a row that cannot be split into cells has none
    and is the last, as nothing after it can be trusted.

    Raises:
        DataError: for a file that is no table, or a row with another number of cells than the heading.
    """
    columns: list[str] = []
    number = 0
    try:
        for number, cells in read_cells(path, where, notes):
            if not columns:
                columns = cells = [cell.lower() for cell in cells]
            elif len(cells) != len(columns) and not any_length:
                raise DataError(
                    f"{where} row {number} has {len(cells)} cells, the heading has {len(columns)}; {QUOTE}"
                )
            yield number, cells
    except csv.Error:
        if columns and any_length:
            yield number + 1, []
            return
        raise DataError(
            f"{where} cannot be read as a table: a quote is opened and not closed, or a cell is too long"
        ) from None
    if not columns:
        raise DataError(f"{where} is empty; its first line names the columns: {', '.join(CASE_COLUMNS)}")


def check_columns(columns: Sequence[str], required: Sequence[str], where: str) -> None:
    """Raise if a required column is missing or a name occurs twice, with the nearest name as a hint.

    Raises:
        DataError: naming the missing column, and no cell of the heading unless it resembles that column.
    """
    for column, count in Counter(columns).items():
        if count > 1 and column:
            positions = " and ".join(str(i + 1) for i, other in enumerate(columns) if other == column)
            known = f"two columns named '{column}'" if column in required else "two columns of the same name"
            raise DataError(f"{where} has {known}, at positions {positions}; name each once")
    for column in required:
        if column not in columns:
            # The heading is quoted only if another word of it is known: it could be the first patient's row.
            is_heading = any(other in columns for other in required)
            near = get_close_matches(column, columns, n=1, cutoff=0.6) if is_heading else []
            hint = (
                f"; is it '{near[0]}'? rename that column to '{column}'"
                if near
                else "; its first line must name the columns"
            )
            raise DataError(f"{where} has no column '{column}'{hint}")


def parse_target(cell: str, column: str = "target") -> int:
    """Return the class number in a cell.

    Raises:
        DataError: for an empty cell, or one that holds no whole number from 0.
    """
    if cell.lower() in EMPTY_CELLS:
        raise DataError(f"the column '{column}' is empty; give its class, 0 or higher, or omit the case")
    try:
        number = float(cell)
    except ValueError:
        number = -1
    if not math.isfinite(number) or number < 0 or number != int(number) or number > MAX_CLASS:
        raise DataError(f"the column '{column}' is no class number; expected 0, 1, ...")
    return int(number)


def parse_split(cell: str) -> str:
    """Return the split in a cell, or UNASSIGNED for an empty cell.

    Raises:
        DataError: for any other word, with the nearest allowed one as a hint.
    """
    word = cell.lower()
    if word in (*SPLITS, UNASSIGNED):
        return word
    near = SPLIT_SYNONYMS.get(word) or next(iter(get_close_matches(word, SPLITS, n=1, cutoff=0.5)), None)
    hint = f"did you mean '{near}'? " if near else ""
    raise DataError(
        f"the column 'split' holds an unknown word; {hint}there are {', '.join(SPLITS)}, or empty to let "
        "medfed choose"
    )
