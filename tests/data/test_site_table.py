"""Tables as spreadsheets, databases and Excel write them, read to the values that a hand would write down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfed.data.datamodule import SiteDataModule
from medfed.data.own_data import OwnData
from medfed.data.settings import Table
from medfed.data.site_table import looks_like_data, with_decimal_points
from medfed.data.table import DECIMAL_COMMAS, read_table
from medfed.data.table_file import WINDOWS
from medfed.data.table_findings import number_findings
from medfed.errors import DataError

SECRET = b"a site's secret of some length"
SETTINGS = Table(features=("age", "pain"), target="disease", categorical={"pain": ("mäßig", "keine")})
HEADING = ["age", "pain", "disease", "split"]
ROWS = [["40.5", "mäßig", "0", "train"], ["50", "keine", "1", "train"]]


def text_of(separator: str = ",", decimal: str = ".") -> str:
    lines = [HEADING, *([row[0].replace(".", decimal), *row[1:]] for row in ROWS)]
    return "".join(separator.join(line) + "\r\n" for line in lines)


def written(tmp_path: Path, content: bytes, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (text_of().encode(), None),
        (text_of("\t").encode(), None),
        (text_of(";").encode("utf-8-sig"), None),
        (text_of(";", ",").encode(), DECIMAL_COMMAS.format(name="age")),
        (("sep=;\r\n" + text_of(";")).encode(), None),
        (("sep=|\r\n" + text_of("|")).encode(), None),
        (text_of().encode("cp1252"), WINDOWS),
        (text_of("\t").encode("utf-16"), None),
        (text_of().replace("\r\n", ",\r\n").encode(), "1 columns have no name and are left out"),
    ],
)
def test_every_way_of_writing_a_table_gives_the_same_numbers(
    tmp_path: Path, content: bytes, note: str | None
) -> None:
    rows = read_table(written(tmp_path, content), SETTINGS, site_secret=SECRET)
    assert rows.numbers.tolist() == [[40.5], [50.0]]
    assert rows.words.tolist() == [[1, 0], [0, 1]]
    assert rows.targets.tolist() == [0, 1]
    assert (note is None) or note in rows.index.notes


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1,5", "2", "", "NA", "-0,25", "3,1e2"], ["1.5", "2", "", "NA", "-0.25", "3.1e2"]),
        (["1.5", "2"], ["1.5", "2"]),
        (["1,500", "0,5"], ["1.500", "0.5"]),
        # No numbers with decimal commas: left as they are, to be refused as words.
        (["1,234,567", "2"], ["1,234,567", "2"]),
        (["1.234,5", "2"], ["1.234,5", "2"]),
        (["a, b", "2"], ["a, b", "2"]),
    ],
)
def test_decimal_commas(cells: list[str], expected: list[str]) -> None:
    assert list(with_decimal_points(cells, "x")) == expected


@pytest.mark.parametrize(
    ("headings", "rows", "expected"),
    [
        (["Meier", "40", "M"], [["Maier", "50", "M"]], True),
        (["Meier", "11.02.1940", "M"], [["Maier", "11.02.1950", "F"]], True),
        (["Meier", "40,5"], [["Maier", "50"]], True),
        (["Meier", "none", "M", "yes"], [["Maier", "none", "F", "yes"]], True),
        (["Meier", "M"], [["Maier", "M"]], True),
        (["patient", "age", "sex", "smoker"], [["a", "40", "M", "smoker"]], False),
        (["patient", "age", "", ""], [["a", "40", "", ""]], False),
    ],
)
def test_a_first_line_that_is_a_row(headings: list[str], rows: list[list[str]], expected: bool) -> None:
    assert looks_like_data([heading.lower() for heading in headings], rows) == expected


def test_headings_that_are_numbers_are_right_if_the_study_knows_one(tmp_path: Path) -> None:
    path = written(tmp_path, b"7157,672,disease\n0.5,0.25,1\n0.1,0.2,0\n")
    rows = read_table(path, Table(features=("7157", "672"), target="disease"), site_secret=SECRET)
    assert rows.numbers.tolist() == [[0.5, 0.25], [0.1, 0.2]]


def test_a_site_has_headings_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path, "Alter;Schmerz;Fall;krank\n40,5;mäßig;a;0\n50;keine;a;1\n60;;b;1\n".encode())
    own = {"age": "Alter", "pain": "Schmerz", "patient": "Fall", "disease": "krank"}
    data = SiteDataModule.open(path, SETTINGS, "table", site_secret=SECRET, own=OwnData(headings=own))
    assert data.rows.numbers.tolist() == [[40.5], [50.0], [60.0]]
    assert data.index.patients == 2
    with pytest.raises(DataError, match=r"the site file gives for 'age'; correct columns\.age") as caught:
        read_table(path, SETTINGS, site_secret=SECRET, own_headings={"age": "Lebensalter"})
    assert "Lebensalter" not in str(caught.value)


def test_missing_values_are_empty_cells(tmp_path: Path) -> None:
    path = written(tmp_path, b"age,pain,disease,split\n-1,none,0,train\n40,?,1,train\n60,9,1,train\n")
    settings = Table(
        features=("age", "pain"),
        target="disease",
        categorical={"pain": ("none",)},
        missing_values={"age": (-1, "x"), "pain": (9.0,)},
        indicate=True,
    )
    data = SiteDataModule.open(path, settings, "table", site_secret=SECRET)
    result = [data.dataset("train")[i]["features"].tolist() for i in range(3)]  # type: ignore[index]
    # The median of 40 and 60 fills: 50 is the mean, too, and the deviation is sqrt(200 / 3).
    step = 10 / np.sqrt(200 / 3)
    np.testing.assert_allclose(result, [[0, 1, 1], [-step, 0, 0], [step, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": ("age", "MRN")}, "features lists 'MRN', which says whose a row is"),
        ({"features": ("age", "date_of_birth")}, "features lists 'date_of_birth'"),
        ({"features": ("age", "who"), "patient": "who"}, "features lists 'who'"),
        ({"ignore": ("age",)}, "ignore names 'age', which the study uses"),
        ({"missing_values": {"agee": (0,)}}, "missing_values names 'agee', which is not in features"),
    ],
)
def test_settings_that_learn_who_a_patient_is(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Table(**{"features": ("age",), "target": "disease", **changes})


def test_identifiers_make_no_attributes(tmp_path: Path) -> None:
    path = written(tmp_path, b"mrn,age,room,sex,disease\nM1,40,12,F,0\nM2,50,13,M,1\n")
    settings = Table(features=("age",), target="disease", ignore=("room",))
    for case in read_table(path, settings, site_secret=SECRET).index.cases:
        assert set(case.attributes) == {"age", "sex"}


def test_visits_of_a_patient_are_in_one_split_without_a_column_patient(tmp_path: Path) -> None:
    rows = "".join(f"MRN{n // 4},{40 + n % 37},{n % 2}\n" for n in range(80))
    path = written(tmp_path, ("mrn,age,disease\n" + rows).encode())
    index = read_table(path, Table(features=("age",), target="disease"), site_secret=SECRET).index
    assert index.patients == 20
    for patient in {case.patient for case in index.cases}:
        assert len({case.split for case in index.cases if case.patient == patient}) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.arange(10115, 10415, 7), "whole numbers of 5 digits"),
        (np.repeat(np.arange(300001, 300200, 13), 4), "whole numbers of 6 digits"),
        (-np.arange(100001, 100900, 37), "whole numbers of 6 digits"),
        (np.arange(1930, 1990), "looks like years"),
        (np.arange(150000, 450000, 1000), ""),  # platelets, rounded
        (np.arange(10115, 10415, 7) + 0.5, ""),
        (np.arange(9000, 12000, 7), ""),  # leukocytes: not equally long
        (np.arange(40, 90), ""),
        (np.array([10115, 10117, 10119, np.nan]), ""),  # few
    ],
)
def test_numbers_that_name_something_and_measure_nothing_are_told(values: np.ndarray, words: str) -> None:
    findings = number_findings("area", values.astype(np.float64))
    assert len(findings) == bool(words)
    assert all(words in one and one.startswith("column 'area'") for one in findings)
