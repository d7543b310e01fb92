"""The cells of an Excel workbook (.xlsx) with one sheet that holds data.

Cells become the text that a CSV file would hold: a date is written as ISO 8601, a whole number without a
decimal point. A formula counts with the value that Excel stored for it.
"""

from __future__ import annotations

import datetime
import io
import zipfile
from collections.abc import Iterator
from typing import Any

from medfed.errors import DataError

# A workbook that unpacks to more than this is a bomb, or no table of patients.
MAX_UNPACKED_BYTES = 1_000_000_000
# Cells beyond Excel's own limit of columns come from a damaged file.
ERROR_CELLS = frozenset({"#N/A", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#NULL!"})


def read_sheet(content: bytes, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with its number in Excel; all have the same number of cells.

    Raises:
        DataError: without openpyxl, for a damaged or locked workbook, for several sheets with data, and for
            a formula without a stored value or with an error.
    """
    values, formulas = _sheet(content, where, data_only=True), _sheet(content, where, data_only=False)
    width = max((len(_filled(row)) for row in values), default=0)
    for number, (row, written) in enumerate(zip(values, formulas, strict=True), start=1):
        cells = [_text(row[i]) if i < len(row) else "" for i in range(width)]
        for cell, source in zip(cells, written, strict=False):
            if isinstance(source, str) and source.startswith("=") and not cell:
                raise DataError(
                    f"{where} row {number} has a formula whose value is not stored; open and save the file "
                    "in Excel, or save it as 'CSV UTF-8'"
                )
            if cell in ERROR_CELLS and cell != "#N/A":
                raise DataError(
                    f"{where} row {number} has a formula with an error; correct or empty the cell"
                )
        if any(cells):
            yield number, cells


def _sheet(content: bytes, where: str, *, data_only: bool) -> list[tuple[Any, ...]]:
    """Return the rows of the only sheet with data."""
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            f"{where} is an Excel workbook, and openpyxl is not installed: pip install 'medfed[tables]', or "
            "save it as 'CSV UTF-8'"
        ) from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise DataError(
                f"{where} unpacks to {unpacked / 1e9:.1f} GB; at most 1 GB is read; save it as CSV"
            )
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=data_only)
        sheets = [list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets]
    except DataError:
        raise
    except Exception:  # noqa: BLE001 openpyxl raises KeyError, ValueError and more, which quote cells
        raise DataError(
            f"{where} cannot be read as an Excel workbook; save it again, or as 'CSV UTF-8'"
        ) from None
    held = [rows for rows in sheets if any(_filled(row) for row in rows)]
    if len(held) != 1:
        raise DataError(
            f"{where} has {len(held)} sheets with data, expected one; move the others to another workbook"
        )
    return held[0]


def _filled(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row without the empty cells at its end."""
    end = len(row)
    while end and (row[end - 1] is None or row[end - 1] == ""):
        end -= 1
    return row[:end]


def _text(value: Any) -> str:
    """Return a cell as a CSV file would hold it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value).strip()
