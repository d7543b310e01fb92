"""`medfed check` and training say the same of every table, and neither says a cell."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.data.datamodule import SiteDataModule
from medfed.data.preflight.preflight import Preflight, to_plain
from medfed.data.preflight.table import TableRequirements, check_table
from medfed.data.settings import Table
from medfed.errors import DataError

SECRET = b"a site's secret of some length"
# In cells, headings and the file's name; no message may hold it.
MARK = "Meier"
HEADING = "patient,age,pain,disease,split"
ROWS = [f"{MARK}{n},{40 + n * 7 % 31},{('none', 'typical')[n % 2]},{n % 2},train" for n in range(12)]
GOOD = "\n".join([HEADING, *ROWS]) + "\n"


def settings_of(**changes: Any) -> Table:
    return Table(
        **{
            "features": ("age", "pain"),
            "target": "disease",
            "categorical": {"pain": ("none", "typical")},
            **changes,
        }
    )


def workbook(*sheets: list[list[Any]]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for rows in sheets:
        sheet = book.create_sheet()
        for row in rows:
            sheet.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def with_row(row: str) -> bytes:
    return (GOOD + row + "\n").encode()


SHEET = [HEADING.split(","), [MARK, 40, "none", 0, "train"]]

SURVIVAL = {"features": ("age",), "categorical": {}, "target": None, "time": "t", "event": "e"}

# What is refused: the file, the study's settings, words of the message.
REFUSED: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "empty file": (b"", {}, "is empty"),
    "only spaces": (b"  \n \n", {}, "is empty"),
    "zero bytes": (b"age\0,pain\n", {}, "zero bytes"),
    "no known encoding": (GOOD.encode() + b"\x81\x8d", {}, "neither UTF-8 nor Windows-1252"),
    "half of UTF-16": (b"\xff\xfea", {}, "UTF-16"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", {}, ".xls"),
    "a zip that is no workbook": (b"PK\x03\x04" + bytes(40), {}, "Excel workbook"),
    "a quote that is not closed": (f'{HEADING}\n"{MARK},1\n'.encode(), {}, "quote"),
    "only a heading": (f"{HEADING}\n".encode(), {}, "no row to learn from"),
    "no heading": ("\n".join(ROWS).encode(), {}, "has no heading"),
    "no heading, only words": (f"{MARK},none,F\n{MARK}x,none,F\n".encode(), {}, "has no heading"),
    "the heading twice": (with_row(HEADING), {}, "repeats its heading in row 14"),
    "a doubled heading": (GOOD.replace("patient", "age", 1).encode(), {}, "two columns named 'age'"),
    "a doubled other heading": (
        GOOD.replace("patient", MARK).replace("split", MARK).encode(), {},
        "the same name, at positions 1 and 5",
    ),
    "a missing column": (GOOD.encode(), {"features": ("agee", "pain")}, "no column 'agee'; is it 'age'?"),
    "a missing patient column": (GOOD.encode(), {"patient": "PatNr"}, "no column 'patnr'"),
    "a missing target": (GOOD.encode(), {"target": "outcome"}, "no column 'outcome'"),
    "a cell too many": (with_row(f"x,40,none,0,train,{MARK}"), {}, "row 14 has 6 cells"),
    "a cell too few": (with_row("x,40,none"), {}, "row 14 has 3 cells"),
    "a word for a number": (with_row(f"x,{MARK},none,0,train"), {}, "column 'age' holds no number"),
    "a number of Python": (with_row("x,1_000,none,0,train"), {}, "column 'age' holds no number"),
    "nan spelt out of place": (with_row("x,-nan,none,0,train"), {}, "column 'age' holds no number"),
    "infinity": (with_row("x,inf,none,0,train"), {}, "no finite number"),
    "beyond float32": (with_row("x,1e39,none,0,train"), {}, "no finite number"),
    "commas and points": (
        f"{HEADING}\nx,\"1,5\",none,0,train\ny,2.5,none,1,train\n".encode(), {},
        "decimal points in some rows",
    ),
    "thousands or decimals": (
        f"{HEADING}\nx,\"1,500\",none,0,train\ny,\"2,500\",none,1,train\n".encode(), {},
        "decimals or thousands",
    ),
    "an unknown word": (with_row(f"x,40,{MARK},0,train"), {}, "a word that data.categorical does not list"),
    "no target": (with_row("x,40,none,,train"), {}, "column 'disease' is empty"),
    "a target NA": (with_row("x,40,none,NA,train"), {}, "column 'disease' is empty"),
    "a target that is a word": (with_row(f"x,40,none,{MARK},train"), {}, "no class number"),
    "a target that is infinite": (with_row("x,40,none,inf,train"), {}, "no class number"),
    "a target nan": (with_row("x,40,none,-nan,train"), {}, "no class number"),
    "half a class": (with_row("x,40,none,0.5,train"), {}, "no class number"),
    "a class too many": (with_row("x,40,none,2,train"), {}, "with 2 classes"),
    "an unknown split": (with_row("x,40,none,0,training"), {}, "did you mean 'train'"),
    "a patient in two splits": (with_row(f"{MARK}1,40,none,0,test"), {}, "one patient is in two splits"),
    "a recognised patient in two splits": (
        with_row(f"{MARK}1,40,none,0,test").replace(b"patient", b"MRN"), {}, "one patient is in two splits",
    ),
    "every row dropped": (
        f"{HEADING}\nx,,none,0,train\n".encode(), {"missing": "drop"}, "every row had an empty cell",
    ),
    "time below 0": (
        b"age,t,e\n40,-1,1\n", SURVIVAL, "column 't' is empty or below 0",
    ),
    "no event": (
        b"age,t,e\n40,1,2\n", SURVIVAL, "neither 0 nor 1",
    ),
    "no column to predict": (GOOD.encode(), {"target": None}, "name its column in data.target"),
    "two sheets": (b"sheets", {}, "2 sheets with data"),
    "a formula without its value": (b"formula", {}, "a formula whose value is not stored"),
    "a formula with an error": (b"error", {}, "a formula with an error"),
}  # fmt: skip


def content_of(name: str) -> bytes:
    content = REFUSED[name][0]
    if content == b"sheets":
        return workbook(SHEET, SHEET)
    if content == b"formula":
        return workbook([*SHEET, [MARK, "=1+1", "none", 0, "train"]])
    if content == b"error":
        return workbook([*SHEET, [MARK, "#REF!", "none", 0, "train"]])
    return content


@pytest.mark.parametrize("name", REFUSED)
def test_check_says_what_training_says(name: str, tmp_path: Path) -> None:
    _, changes, words = REFUSED[name]
    settings = settings_of(**changes)
    needs: Any = "survival" if settings.time else "table"
    path = tmp_path / f"{MARK}.csv"
    path.write_bytes(content_of(name))
    with pytest.raises(DataError) as caught:
        SiteDataModule.open(path, settings, needs, site_secret=SECRET, classes=2)
    assert words in str(caught.value)
    wanted = TableRequirements("heart", settings, needs, ("healthy", "ill"))
    preflight = check_table(path, wanted, site_secret=SECRET)
    assert preflight.exit_code == 2
    assert preflight.can_take_part is False
    assert ("", str(caught.value)) in preflight.problems[0].cases
    assert MARK.lower() not in (json.dumps(to_plain(preflight)) + str(caught.value)).lower()


@pytest.mark.parametrize(
    "name", ["empty file", "no heading", "no heading, only words", "the heading twice", "only a heading",
             "a doubled other heading", "a cell too many", "a quote that is not closed", "two sheets"]
)  # fmt: skip
def test_check_without_a_study_refuses_what_every_study_would(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{MARK}.csv"
    path.write_bytes(content_of(name))
    preflight = check_table(path)
    assert preflight.exit_code == 2
    assert MARK.lower() not in json.dumps(to_plain(preflight)).lower()


def checked(tmp_path: Path, text: str, settings: Table | None = None) -> Preflight:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    wanted = TableRequirements("heart", settings, "table", ("healthy", "ill")) if settings else None
    return check_table(path, wanted, site_secret=SECRET)


def test_a_good_table_can_take_part(tmp_path: Path) -> None:
    preflight = checked(tmp_path, GOOD, settings_of())
    assert preflight.can_take_part
    assert preflight.facts["cases"] == "12 of 12 patients"
    assert preflight.facts["columns"]["patient"] == (
        "ids of patients: keeps a patient's rows together, never learned from"
    )
    assert preflight.facts["columns"]["pain"] == "words, 2 different, 0 of 12 empty"


def test_columns_are_named_and_identifiers_are_not(tmp_path: Path) -> None:
    rows = "".join(f"{MARK} {n},{n % 5},K{n}\n" for n in range(20))
    columns = checked(tmp_path, f"{MARK} Joerg,grade,lab\n{rows}").facts["columns"]
    assert set(columns) == {"1", "grade", "3"}


def test_a_value_that_stands_for_missing_is_asked_about(tmp_path: Path) -> None:
    rows = "".join(f"{0 if n < 6 else 150 + 7 * n},{n % 2}\n" for n in range(40))
    title = "Columns that may mean something else"
    (problem,) = [p for p in checked(tmp_path, "chol,disease\n" + rows).problems if p.title == title]
    assert problem.cases == (
        (
            "",
            "column 'chol' holds 0 in 6 rows, far from its other values: if it stands for 'not measured', "
            "say so in data.missing_values.chol",
        ),
    )
    settings = Table(features=("chol",), target="disease", missing_values={"chol": (0,)})
    preflight = checked(tmp_path, "chol,disease\n" + rows, settings)
    assert not [p for p in preflight.problems if "stands for" in str(p)]


def test_a_folder_with_a_table_alone_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t40\nsub-02\tn/a\n")
    result = CliRunner().invoke(main, ["check", str(tmp_path)])
    assert "This table can be used" in result.output
    assert "column age" in result.output


def test_a_table_without_a_training_row_is_refused_where_the_site_trains(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(GOOD.replace(",train", ",test"))
    data = SiteDataModule.open(path, settings_of(), "table", site_secret=SECRET, classes=2)
    with pytest.raises(DataError, match="the site has no training case") as caught:
        data.require_training_cases()
    wanted = TableRequirements("heart", settings_of(), "table", ("healthy", "ill"))
    assert ("", str(caught.value)) in check_table(path, wanted, site_secret=SECRET).problems[0].cases
    held_out = replace(wanted, trains=False)
    assert check_table(path, held_out, site_secret=SECRET).can_take_part
