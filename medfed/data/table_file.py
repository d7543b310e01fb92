"""The file of a hospital's table: which one it is, and its cells as text.

CSV and TSV as spreadsheets and databases write them (UTF-8, UTF-16 or Windows-1252; commas, semicolons or
tabs; Excel's `sep=` line), and XLSX (`xlsx.py`). Every message names `where`, never a cell.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from medfed.errors import DataError

# The columns of cases.csv that mean something to medfed.
CASE_COLUMNS = ("case", "patient", "image", "label", "target", "split")

SEPARATORS = ",;\t"
ENDINGS = (".csv", ".tsv", ".xlsx")
CASES_FILE = "cases.csv"
# The table of people in a BIDS data set; others beside it describe scans and sessions.
PARTICIPANTS_FILE = "participants.tsv"
XLSX_MAGIC = b"PK\x03\x04"
# The old binary format of Excel, an OLE2 container.
XLS_MAGIC = b"\xd0\xcf\x11\xe0"

# More bytes than this are no table of patients, and are not read.
MAX_TABLE_BYTES = 2_000_000_000

WINDOWS = (
    "the file is not UTF-8 and was read as Windows-1252 (Latin-1); save it as 'CSV UTF-8' if words look wrong"
)

_QUOTED = re.compile(r'"[^"]*"')
_SEPARATOR_LINE = re.compile(r"\"?sep=(.)\"?\r?\n", re.IGNORECASE)


def find_table(path: Path) -> Path:
    """Return the table that a path is, or the only one in a folder.

    Raises:
        DataError: if there is none, or several.
    """
    if path.is_dir():
        files = tables_in(path)
        if len(files) == 1:
            return files[0]
        remedy = "expected one (.csv, .tsv or .xlsx); name the file in the site's `data`"
        raise DataError(f"the site's data folder holds {len(files)} tables, {remedy}")
    if not path.is_file():
        raise DataError("the site's table is not there; set the site's `data` to the CSV, TSV or XLSX file")
    return path


def tables_in(folder: Path) -> list[Path]:
    """Return the tables directly in a folder; in a BIDS data set that is the table of its participants."""
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in ENDINGS and not path.name.startswith((".", "~$")) and path.is_file()
    ]
    people = [path for path in files if path.name == PARTICIPANTS_FILE]
    return people or files


def is_table(path: Path) -> bool:
    """Whether a path is a table, or a folder that holds nothing but one."""
    if path.is_file():
        return True
    if not path.is_dir() or (path / CASES_FILE).exists():
        return False
    visible = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    return len(visible) == 1 and tables_in(path) == visible


def read_cells(path: Path, where: str, notes: list[str] | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with its number, its cells stripped of spaces.

    What had to be decided (the encoding) is added to `notes`.

    Raises:
        DataError: for a file that is no table.
        csv.Error: at a row that cannot be split into cells.
    """
    content = path.read_bytes() if path.stat().st_size <= MAX_TABLE_BYTES else None
    if content is None:
        raise DataError(f"{where} is larger than {MAX_TABLE_BYTES / 1e9:.0f} GB; leave out columns or rows")
    if content.startswith(XLSX_MAGIC):
        from medfed.data.xlsx import read_sheet

        yield from read_sheet(content, where)
        return
    text = _decoded(content, where, notes if notes is not None else [])
    if "\0" in text:
        raise DataError(f"{where} holds zero bytes, so it is no text table; save it as 'CSV UTF-8'")
    if not text.strip():
        raise DataError(f"{where} is empty; its first line names the columns: {', '.join(CASE_COLUMNS)}")
    stated = _SEPARATOR_LINE.match(text)
    skipped = 1 if stated else 0
    if stated:
        text = text[stated.end() :]
    delimiter = stated[1] if stated else _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    for number, row in enumerate(reader, start=1 + skipped):
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield number, cells


def _separator(text: str) -> str:
    """Return the separator that the heading has most of, outside of quotes."""
    heading = _QUOTED.sub("", text.lstrip().split("\n", 1)[0])
    return max(SEPARATORS, key=heading.count)


def _decoded(content: bytes, where: str, notes: list[str]) -> str:
    if content.startswith(XLS_MAGIC):
        raise DataError(f"{where} is in Excel's old format (.xls); save it as .xlsx or 'CSV UTF-8'")
    # Excel's 'Unicode text'.
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError:
            raise DataError(f"{where} is not whole UTF-16 text; save it as 'CSV UTF-8'") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        raise DataError(f"{where} is neither UTF-8 nor Windows-1252 text; save it as 'CSV UTF-8'") from None
    notes.append(WINDOWS)
    return text
