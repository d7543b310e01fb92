"""The file of a hospital's table: which one it is, its encoding and separator, or why it is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.data import table_file
from medfed.data.site_table import open_table
from medfed.data.table_file import WINDOWS, find_table, is_table, read_cells, tables_in
from medfed.errors import DataError

from .test_site_table import written


def test_a_separator_within_quotes_is_none(tmp_path: Path) -> None:
    table = open_table(written(tmp_path, b'"age, in years, at CT";sex\n40;F\n'))
    assert table.columns == {"age, in years, at ct": ("40",), "sex": ("F",)}


def test_the_table_of_a_folder(tmp_path: Path) -> None:
    written(tmp_path, b"participant_id\tage\n", "participants.tsv")
    assert is_table(tmp_path)
    written(tmp_path, b"sample_id\tage\n", "samples.tsv")
    assert find_table(tmp_path).name == "participants.tsv"
    assert not is_table(tmp_path)
    written(tmp_path, b"case,image\n", "cases.csv")
    assert not is_table(tmp_path)


def cells_of(tmp_path: Path, content: bytes, notes: list[str] | None = None) -> list[tuple[int, list[str]]]:
    return list(read_cells(written(tmp_path, content), "north's table", notes))


def test_hidden_files_and_excels_locks_are_no_tables(tmp_path: Path) -> None:
    for name in ("b.TSV", "a.csv", ".c.csv", "~$d.xlsx", "notes.txt"):
        written(tmp_path, b"a\n", name)
    (tmp_path / "folder.csv").mkdir()
    assert [path.name for path in tables_in(tmp_path)] == ["a.csv", "b.TSV"]
    with pytest.raises(DataError, match=r"^the site's data folder holds 2 tables, expected one"):
        find_table(tmp_path)
    with pytest.raises(DataError, match=r"^the site's table is not there; set the site's `data`"):
        find_table(tmp_path / "missing.csv")
    assert find_table(tmp_path / "a.csv") == tmp_path / "a.csv"


def test_rows_that_are_not_blank_have_the_numbers_of_their_lines(tmp_path: Path) -> None:
    assert cells_of(tmp_path, b"a,b\n,\n 1 ,2\n") == [(1, ["a", "b"]), (3, ["1", "2"])]
    # Excel's line of the separator is a line of the file, too.
    assert cells_of(tmp_path, b"sep=|\r\na|b\r\n1|2\r\n") == [(2, ["a", "b"]), (3, ["1", "2"])]


@pytest.mark.parametrize(
    ("content", "noted"),
    [
        ("ä;b".encode(), []),
        ("ä;b".encode("utf-8-sig"), []),
        ("ä;b".encode("utf-16"), []),
        ("ä;b".encode("cp1252"), [WINDOWS]),
    ],
)
def test_each_encoding_is_recognised_and_a_guess_is_noted(tmp_path, content: bytes, noted: list[str]) -> None:
    notes: list[str] = []
    assert cells_of(tmp_path, content, notes) == [(1, ["ä", "b"])]
    assert notes == noted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; its first line names the columns: case, patient, image"),
        (b" \n\n", "is empty; its first line names the columns"),
        (b"a,b\0\n", "holds zero bytes, so it is no text table"),
        (b"\xd0\xcf\x11\xe0 rest", r"is in Excel's old format \(\.xls\); save it as \.xlsx"),
        (b"\xff\xfea", "is not whole UTF-16 text"),
        (b"\x81\xff", "is neither UTF-8 nor Windows-1252 text"),
    ],
)
def test_what_is_no_text_table_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=rf"^north's table {words}"):
        cells_of(tmp_path, content)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(table_file, "MAX_TABLE_BYTES", 3)
    assert cells_of(tmp_path, b"a,b") == [(1, ["a", "b"])]
    with pytest.raises(DataError, match=r"^north's table is larger than 0 GB; leave out columns or rows"):
        cells_of(tmp_path, b"a,bc")
