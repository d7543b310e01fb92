"""A table of cases, cases.csv: the layout that says everything, and how its cells are read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from medfed.data.index import Case
from medfed.data.layouts._layout import Found
from medfed.data.splits import SPLITS, UNASSIGNED, case_token
from medfed.errors import DataError, ImageError

# Columns of cases.csv that mean something to medfed; every other column is kept as an attribute.
CASE_COLUMNS = ("case", "patient", "image", "label", "target", "split")
NEEDED_COLUMNS = ("case", "image")

# Between the images of one case in a cell: one file a channel, in order.
CHANNEL_SEPARATOR = "|"


def is_table(folder: Path) -> bool:
    """Whether there is a cases.csv."""
    return (folder / "cases.csv").is_file()


def table(folder: Path, site_secret: bytes) -> Found:
    """List the rows of cases.csv; paths in it are relative to its folder."""
    where = "cases.csv"
    rows = read_rows(folder / "cases.csv", where)
    columns = next(rows)[1]
    check_columns(columns, NEEDED_COLUMNS, where)
    cases = []
    rows_of: dict[str, int] = {}
    for number, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        name = row["case"]
        if not name:
            raise DataError(f"{where} row {number}: the case has no id; fill the column 'case'")
        token = case_token(site_secret, name)
        at = f"{where} row {number} (case {token})"
        if name in rows_of:
            raise DataError(
                f"{at}: the same case id as row {rows_of[name]}; every case needs an id of its own, "
                "and a patient's several visits share the column 'patient'"
            )
        rows_of[name] = number
        if not row["image"]:
            raise DataError(
                f"{at}: the column 'image' is empty; give the image's path relative to the folder"
            )
        images = tuple(folder / part.strip() for part in row["image"].split(CHANNEL_SEPARATOR))
        for path in images:
            if not path.exists():
                raise ImageError(
                    f"{at}: its image is not there; correct the path in the column 'image' or restore the "
                    "file"
                )
        label = folder / row["label"] if row.get("label") else None
        if label is not None and not label.exists():
            raise ImageError(
                f"{at}: its label is not there; correct the path in the column 'label' or restore the file"
            )
        cases.append(
            Case(
                id=name,
                patient=row.get("patient") or name,
                token=token,
                image=images,
                label=label,
                target=read_target(row["target"], at) if "target" in row else None,
                split=read_split(row.get("split", ""), at),
                attributes=MappingProxyType({k: v for k, v in row.items() if k not in CASE_COLUMNS}),
            )
        )
    notes = (
        ()
        if "patient" in columns
        else ("cases.csv has no column 'patient': each case counts as a patient of its own",)
    )
    return Found("cases.csv", tuple(cases), notes)


def read_rows(path: Path, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the heading as row 1, then each row with the number a spreadsheet shows; commas, semicolons or
    tabs.

    Raises:
        DataError: for a file that is no UTF-8 text or a row with another number of cells.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8 text; save it as 'CSV UTF-8'") from None
    if "\0" in text:
        raise DataError(f"{where} holds zero bytes, so it is no text table; save it as 'CSV UTF-8'")
    heading = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=heading.count)
    columns: list[str] = []
    try:
        for number, cells in enumerate(
            csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), start=1
        ):
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not columns:
                columns = [cell.lower() for cell in cells]
            elif len(cells) != len(columns):
                raise DataError(
                    f"{where} row {number} has {len(cells)} cells, the heading has {len(columns)}; quote "
                    f"cells with a '{delimiter}'"
                )
            yield number, columns if cells and number == 1 else cells
    except csv.Error:
        raise DataError(
            f"{where} cannot be read as a table: a quote is opened and not closed, or a cell is too long"
        ) from None
    if not columns:
        raise DataError(f"{where} is empty; its first line names the columns: {', '.join(CASE_COLUMNS)}")


def check_columns(columns: Sequence[str], needed: Sequence[str], where: str) -> None:
    """Raise where a needed column is missing, suggesting the nearest that is there.

    Raises:
        DataError: naming the column that is missing, and no other cell of the heading unless it is nearly
        that one.
    """
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(
                f"{where} has two columns of the same name, at positions {_positions(columns, column)}; "
                "name each once"
            )
    for column in needed:
        if column not in columns:
            near = get_close_matches(column, columns, n=1, cutoff=0.6)
            hint = (
                f"; is it '{near[0]}'? rename that column to '{column}'"
                if near
                else "; its first line must name the columns"
            )
            raise DataError(f"{where} has no column '{column}'{hint}")


def _positions(columns: Sequence[str], column: str) -> str:
    return " and ".join(str(i + 1) for i, other in enumerate(columns) if other == column)


def read_target(cell: str, at: str, column: str = "target") -> int:
    """Return a class number from a cell.

    Raises:
        DataError: for an empty cell or anything that is no whole number from 0.
    """
    if not cell:
        raise DataError(
            f"{at}: the column '{column}' is empty; give its class, 0 or higher, or leave the case out"
        )
    try:
        number = float(cell)
    except ValueError:
        number = -1
    if number < 0 or number != int(number):
        raise DataError(f"{at}: the column '{column}' is no class number; expected 0, 1, ...")
    return int(number)


def read_split(cell: str, at: str) -> str:
    """Return a split, or UNASSIGNED for an empty cell.

    Raises:
        DataError: for any other word, with the nearest that is allowed.
    """
    word = cell.lower()
    if word in (*SPLITS, UNASSIGNED):
        return word
    synonyms = {
        "validation": "val",
        "valid": "val",
        "dev": "val",
        "training": "train",
        "testing": "test",
        "tr": "train",
        "ts": "test",
    }
    near = synonyms.get(word) or next(iter(get_close_matches(word, SPLITS, n=1, cutoff=0.5)), None)
    hint = f"did you mean '{near}'? " if near else ""
    raise DataError(
        f"{at}: the column 'split' holds an unknown word; {hint}there are {', '.join(SPLITS)}, or empty to "
        "let medfed choose"
    )
