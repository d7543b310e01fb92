"""Tables that training refuses: one for each refusal there is, and what the study asks of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medfed.data.batch_needs import Needs
from medfed.data.settings import Table

from ..hospital_folder import MARK

HEADING = "patient,age,pain,disease,split"


@dataclass(frozen=True)
class BrokenTable:
    """A site's files and what a study asks of them; `path` below the folder is the site's `data`."""

    files: Mapping[str, bytes]
    needs: Needs = "table"
    headings: Mapping[str, str] = field(default_factory=dict)
    path: str = "t.csv"
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Table:
        given: dict[str, Any] = {
            "features": ("age", "pain"),
            "target": "disease",
            "categorical": {"pain": ("none", "typical")},
        }
        return Table(**{**given, **self.changes})

    def write(self, folder: Path) -> Path:
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder / self.path


def lines(count: int = 12, **cells: str) -> list[list[str]]:
    """Return rows, each of a patient of its own; `cells` replaces those of the second row, by column."""
    rows = [
        [f"{MARK}{n}", str(40 + n * 7 % 31), ("none", "typical")[n % 2], str(n % 2), "train"]
        for n in range(count)
    ]
    for name, cell in cells.items():
        rows[1][HEADING.split(",").index(name)] = cell
    return rows


def csv_of(rows: list[list[str]], heading: str = HEADING) -> bytes:
    return ("\n".join([heading, *(",".join(row) for row in rows)]) + "\n").encode()


def cell(**cells: str) -> BrokenTable:
    return BrokenTable({"t.csv": csv_of(lines(**cells))})


def content(data: bytes, **given: Any) -> BrokenTable:
    return BrokenTable({"t.csv": data}, **given)


def column(name: str, *cells: str) -> BrokenTable:
    """A table in which one column has these cells."""
    rows = lines(len(cells))
    for row, one in zip(rows, cells, strict=True):
        row[HEADING.split(",").index(name)] = one
    return BrokenTable({"t.csv": csv_of([[f'"{one}"' for one in row] for row in rows])})


def workbook(*sheets: list[list[Any]]) -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    for number, rows in enumerate(sheets):
        sheet = book.active if number == 0 else book.create_sheet()
        for row in rows:
            sheet.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def survival(time: str, event: str, *, of_first: bool = False) -> BrokenTable:
    rows = [[f"{MARK}{n}", str(40 + n), "5", "1", "train"] for n in range(6)]
    rows[1][2:4] = time, event
    rows[1][0] = rows[0][0] if of_first else rows[1][0]
    return BrokenTable(
        {"t.csv": csv_of(rows, "patient,age,months,died,split")},
        "survival",
        changes={"features": ("age",), "target": None, "categorical": {}, "time": "months", "event": "died"},
    )


GOOD = csv_of(lines())

BROKEN_TABLES: dict[str, BrokenTable] = {
    "nothing there": BrokenTable({}),
    "two tables": BrokenTable({"a.csv": GOOD, "b.csv": GOOD}, path=""),
    "zero bytes": content(b"\0" * 40),
    "empty": content(b""),
    "only separators": content(b",,,\n,,,\n"),
    "old Excel": content(b"\xd0\xcf\x11\xe0" + b"\0" * 99),
    "half a UTF-16 letter": content(b"\xff\xfea"),
    "no encoding": content(GOOD + b"\x81\x8d"),
    "a quote that is not closed": content(GOOD + b'"Meier,4,none,1,train\n'),
    "a row too short": content(GOOD + b"Meier,4\n"),
    "a heading twice": content(GOOD.replace(b"pain", b"age", 1)),
    "a column lacking": content(GOOD.replace(b"pain", b"ache", 1)),
    "no heading": content(GOOD.partition(b"\n")[2]),
    "the heading again": content(GOOD + HEADING.encode() + b"\n"),
    "a heading of the site file that is not there": content(GOOD, headings={"age": "Alter"}),
    "points and commas": column("age", "1.5", "2,5", "3.5", "4.5"),
    "decimals or thousands": column("age", "1,500", "2,500", "3", "4"),
    "no number": cell(age="old"),
    "an infinite number": cell(age="1e999"),
    "a word that is not listed": cell(pain="some"),
    "no class": cell(disease="ill"),
    "an empty class": cell(disease=""),
    "a class too many": cell(disease="7"),
    "an unknown split": cell(split="nowhere"),
    "a patient in two splits": content(csv_of([*lines(), [f"{MARK}0", "40", "none", "0", "test"]])),
    "no row": content(csv_of([])),
    "every row is dropped": content(
        csv_of(lines(2, age="")).replace(b",40,", b",,"), changes={"missing": "drop"}
    ),
    "no training row": content(GOOD.replace(b"train", b"test")),
    "a study of classes without one": content(GOOD, changes={"target": None}),
    "a study of survival without a time": content(GOOD, needs="survival"),
    "a study of images": content(GOOD, needs="classify"),
    "a time below 0": survival("-1", "1"),
    "an event that is none": survival("4", "2"),
    "two times of one patient": survival("4", "1", of_first=True),
    "a workbook that is none": content(b"PK\x03\x04" + b"x" * 99),
}
# Without openpyxl no workbook is read.
if find_spec("openpyxl") is not None:
    BROKEN_TABLES |= {
        "a formula without a value": content(
            workbook([HEADING.split(","), ["a", "=1+1", "none", 0, "train"]])
        ),
        "a formula with an error": content(
            workbook([HEADING.split(","), ["a", "#DIV/0!", "none", 0, "train"]])
        ),
        "two sheets": content(workbook([HEADING.split(",")], [HEADING.split(",")])),
    }
