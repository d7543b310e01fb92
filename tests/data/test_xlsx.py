"""Cells of Excel workbooks: the text that a CSV file would hold, or a refusal that names the row alone."""

from __future__ import annotations

import datetime
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from medfed.data import xlsx
from medfed.data.site_table import open_table
from medfed.data.table import read_table
from medfed.data.xlsx import read_sheet
from medfed.errors import DataError

from .test_site_table import HEADING, SECRET, SETTINGS, written


def excel(rows: list[list[Any]]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.create_sheet("empty")
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def test_a_workbook_gives_the_same_numbers(tmp_path: Path) -> None:
    content = excel([HEADING, [40.5, "mäßig", 0, "train"], [50.0, "keine", 1, "train"], [None] * 4])
    rows = read_table(written(tmp_path, content, "t.xlsx"), SETTINGS, site_secret=SECRET)
    assert rows.numbers.tolist() == [[40.5], [50.0]]
    assert rows.words.tolist() == [[1, 0], [0, 1]]


def test_cells_of_a_workbook_are_those_of_its_csv(tmp_path: Path) -> None:
    day = datetime.datetime(2020, 2, 11)
    content = excel([["day", "at", "yes", "n", "x"], [day, day.replace(hour=7), True, 3.0, "#N/A"]])
    table = open_table(written(tmp_path, content, "t.xlsx"))
    assert [cells[0] for cells in table.columns.values()] == [
        "2020-02-11", "2020-02-11T07:00:00", "TRUE", "3", "#N/A",
    ]  # fmt: skip


def rows_of(content: bytes) -> list[tuple[int, list[str]]]:
    return list(read_sheet(content, "north's table"))


def test_rows_have_excels_numbers_and_all_the_same_cells() -> None:
    content = excel([["a", "b"], [None, None], [" x ", None], [1, 2.5], [False, datetime.time(7, 30)]])
    expected = [(1, ["a", "b"]), (3, ["x", ""]), (4, ["1", "2.5"]), (5, ["FALSE", "07:30:00"])]
    assert rows_of(content) == expected


def test_a_whole_number_is_written_without_a_point() -> None:
    assert rows_of(excel([[3.0, -2.0, 2.5]])) == [(1, ["3", "-2", "2.5"])]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["a"], ["=1+1"]], "row 2 has a formula whose value is not stored; open and save the file in Excel"),
        ([["a"], ["b"], ["#DIV/0!"]], "row 3 has a formula with an error; correct or empty the cell"),
        ([], "has 0 sheets with data, expected one"),
    ],
)
def test_what_is_no_table_is_refused_by_its_row(rows: list[list[Any]], words: str) -> None:
    with pytest.raises(DataError, match=rf"^north's table {words}"):
        rows_of(excel(rows))


def test_a_second_sheet_with_data_is_refused() -> None:
    book = pytest.importorskip("openpyxl").Workbook()
    book.active.append(["a"])
    book.create_sheet("more").append(["b"])
    content = io.BytesIO()
    book.save(content)
    with pytest.raises(
        DataError, match=r"^north's table has 2 sheets with data, expected one; move the others"
    ):
        rows_of(content.getvalue())


def test_a_damaged_workbook_or_one_that_unpacks_to_too_much_is_refused(monkeypatch) -> None:
    content = excel([["Meier"]])
    with pytest.raises(
        DataError, match=r"^north's table cannot be read as an Excel workbook; save it"
    ) as caught:
        rows_of(content[: len(content) // 2])
    assert "Meier" not in str(caught.value)
    unpacked = sum(entry.file_size for entry in zipfile.ZipFile(io.BytesIO(content)).infolist())
    monkeypatch.setattr(xlsx, "MAX_UNPACKED_BYTES", unpacked)
    assert rows_of(content) == [(1, ["Meier"])]
    monkeypatch.setattr(xlsx, "MAX_UNPACKED_BYTES", unpacked - 1)
    with pytest.raises(DataError, match=r"^north's table unpacks to 0\.0 GB; at most 1 GB is read"):
        rows_of(content)
