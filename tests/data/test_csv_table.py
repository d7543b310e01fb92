"""Tables as spreadsheets write them, and tables that are refused with the row, the column and no cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.errors import DataError

from .hospital_folder import MARK, folder_of, index, refused, row, token


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_spreadsheets_ways_of_writing_a_table(tmp_path: Path, delimiter: str, mark: str, end: str) -> None:
    folder = folder_of(tmp_path, [])
    lines = ["Case,Image,Label", f"x,{MARK}_a.nii.gz,{MARK}_a_label.nii.gz", ",,"]
    (folder / "cases.csv").write_text(
        mark + end.join(lines).replace(",", delimiter), encoding="utf-8", newline=""
    )
    assert [case.id for case in index(folder).cases] == ["x"]


def test_an_empty_table(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [])
    (folder / "cases.csv").write_bytes(b"")
    refused(lambda: index(folder), DataError, "cases.csv is empty", "names the columns")


@pytest.mark.parametrize(
    ("heading", "words"),
    [
        ("case,patient,imgae,label,target,split", ("no column 'image'", "is it 'imgae'?")),
        ("cases,patient,image,label,target,split", ("no column 'case'", "is it 'cases'?")),
        ("case,patient,x,label,target,split", ("no column 'image'", "first line")),
        ("case,case,image,label,target,split", ("two columns named 'case'", "1 and 2")),
    ],
)
def test_a_heading_that_lacks_a_column(tmp_path: Path, heading: str, words: tuple[str, ...]) -> None:
    refused(lambda: index(folder_of(tmp_path, [row("a")], heading)), DataError, *words)


def test_a_table_without_a_heading_leaks_no_row(tmp_path: Path) -> None:
    refused(
        lambda: index(folder_of(tmp_path, [row("b")], row("a"))), DataError, "no column 'case'", "first line"
    )


@pytest.mark.parametrize(
    ("word", "near"), [("trian", "train"), ("validation", "val"), ("tset", "test"), (MARK, "")]
)
def test_an_unknown_split(tmp_path: Path, word: str, near: str) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b", split=word)])
    hint = f"did you mean '{near}'?" if near else "there are train, val, test"
    refused(lambda: index(folder), DataError, "row 3", token("b"), "'split'", hint)


@pytest.mark.parametrize(
    ("cell", "word"), [(MARK, "no class number"), ("-1", "no class"), ("0.5", "no class")]
)
def test_a_target_that_is_none(tmp_path: Path, cell: str, word: str) -> None:
    refused(
        lambda: index(folder_of(tmp_path, [row("a"), row("b", target=cell)])),
        DataError,
        "row 3",
        token("b"),
        word,
    )


def test_a_row_with_a_cell_too_many(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b") + f",{MARK}"])
    refused(lambda: index(folder), DataError, "row 3 has 7 cells", "heading has 6")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"case,image\n\x81\xfe,x\n", "neither UTF-8 nor"),
        (b"case,image\n\0\0\n", "zero bytes"),
        (b'case,image\n"Meier,x\n', "quote"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, content: bytes, word: str) -> None:
    folder = folder_of(tmp_path, [])
    (folder / "cases.csv").write_bytes(content)
    refused(lambda: index(folder), DataError, "cases.csv", word)


def test_a_recognised_column_keeps_a_patients_cases_together(tmp_path: Path) -> None:
    rows = [
        f"{MARK}-{case},{MARK}{number},{MARK}_{case}.nii.gz"
        for case, number in (("a", 1), ("b", 1), ("c", 2))
    ]
    indexed = index(folder_of(tmp_path, rows, "case,MRN,image"))
    assert [case.patient for case in indexed.cases] == [f"{MARK}1", f"{MARK}1", f"{MARK}2"]
    assert any("rows of one patient are kept in one split" in note for note in indexed.notes)
