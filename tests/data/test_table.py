"""A table's rows become the numbers that a hand would compute, from the site's own training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medfed.data.datamodule import SiteDataModule
from medfed.data.settings import Table
from medfed.data.table import fit_scaling, network_inputs, read_table
from medfed.errors import DataError

SECRET = b"a site's secret of some length"


SAMPLES = Path(__file__).parents[2] / "sample_data" / "tabular"


MARK = "Meier"


ROWS = """patient,age,pain,rate,disease,split
Meier1,40,none,100,0,train
Meier2,60,typical,,1,train
Meier3,50,,130,1,train
Meier4,90,none,70,0,val
"""


def settings_of(**changes: Any) -> Table:
    return Table(
        **{
            "features": ("age", "pain", "rate"),
            "target": "disease",
            "categorical": {"pain": ("typical", "none")},
            **changes,
        }
    )


def write(tmp_path: Path, text: str = ROWS) -> Path:
    path = tmp_path / f"{MARK}.csv"
    path.write_text(text, encoding="utf-8")
    return path


def site(path: Path, settings: Table, needs: Any = "table", **more: Any) -> SiteDataModule:
    return SiteDataModule.open(path, settings, needs, site_secret=SECRET, classes=2, **more)


def test_inputs_by_hand(tmp_path: Path) -> None:
    data = site(write(tmp_path), settings_of())
    result = torch.stack([data.dataset("train")[i]["features"] for i in range(3)])  # type: ignore[index]
    # Ages 40, 60, 50: mean 50, deviation sqrt(200 / 3). Rates 100, empty, 130: the median 115 fills; mean
    # 115, deviation sqrt((225 + 0 + 225) / 3). Then typical, none.
    age, rate = np.sqrt(200 / 3), np.sqrt(150)
    expected = [[-10 / age, -15 / rate, 0, 1], [10 / age, 0, 1, 0], [0, 15 / rate, 0, 0]]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_other_splits_use_the_training_rows_numbers(tmp_path: Path) -> None:
    data = site(write(tmp_path), settings_of())
    result = data.dataset("val")[0]  # type: ignore[index]
    np.testing.assert_allclose(
        result["features"], [40 / np.sqrt(200 / 3), -45 / np.sqrt(150), 0, 1], rtol=1e-6
    )
    assert result["target"].item() == 0


def test_indicate_says_what_was_empty(tmp_path: Path) -> None:
    settings = settings_of(indicate=True)
    rows = read_table(write(tmp_path), settings, site_secret=SECRET)
    result = network_inputs(rows, fit_scaling(rows, settings)[0], settings)
    assert result.shape == (4, settings.inputs)
    np.testing.assert_array_equal(result[:, 2:4], [[0, 0], [0, 1], [0, 0], [0, 0]])


def test_fixed_numbers_are_the_same_at_every_site(tmp_path: Path) -> None:
    settings = settings_of(
        standardise="fixed", centre={"age": 50, "rate": 100}, scale={"age": 10, "rate": 50}
    )
    data = site(write(tmp_path), settings)
    np.testing.assert_allclose(data.dataset("train")[1]["features"], [1, (115 - 100) / 50, 1, 0])  # type: ignore[index]


def test_drop_leaves_rows_with_empty_numbers_out(tmp_path: Path) -> None:
    data = site(write(tmp_path), settings_of(missing="drop"))
    assert data.examples == 2


def test_a_constant_column_becomes_zero(tmp_path: Path) -> None:
    text = "age,rate,disease,split\n" + "".join(f"{40 + i},0.3,{i % 2},train\n" for i in range(7))
    result = site(write(tmp_path, text), settings_of(features=("age", "rate"), categorical={})).dataset(
        "train"
    )
    assert [result[i]["features"][1].item() for i in range(7)] == pytest.approx([0] * 7, abs=1e-6)  # type: ignore[index]


def test_a_site_without_training_rows_says_whence_its_numbers_are() -> None:
    settings = settings_of(features=("age", "cholesterol"), categorical={})
    data = site(SAMPLES / "university.csv", settings)
    assert data.examples == 0
    assert any("no training row" in note for note in data.notes)
    assert np.isfinite(next(iter(data.test_dataloader()))["features"]).all()


@pytest.mark.parametrize("hospital", ["north", "east", "south", "west", "university"])
def test_the_sample_tables(hospital: str) -> None:
    settings = Table(
        features=(
            "age",
            "sex",
            "chest_pain",
            "blood_pressure",
            "cholesterol",
            "heart_rate",
            "angina",
            "st_depression",
            "slope",
            "vessels",
            "thal",
        ),
        target="disease",
        categorical={
            "sex": ("F", "M"),
            "chest_pain": ("typical", "atypical", "nonanginal", "none"),
            "slope": ("up", "flat", "down"),
            "thal": ("normal", "fixed", "reversible"),
        },
    )
    data = site(SAMPLES / f"{hospital}.csv", settings, batch=16)
    loader = data.test_dataloader() if hospital == "university" else data.train_dataloader()
    batch = next(iter(loader))
    assert tuple(batch["features"].shape) == (16, settings.inputs) == (16, 19)
    assert (batch["features"].dtype, batch["target"].dtype) == (torch.float32, torch.int64)


def test_a_feature_makes_subgroups_too_and_the_answer_does_not(tmp_path: Path) -> None:
    case = read_table(write(tmp_path), settings_of(), site_secret=SECRET, classes=2).index.cases[0]
    assert case.attributes["age"] == "40"
    assert "disease" not in case.attributes


def test_survival_has_time_and_event(tmp_path: Path) -> None:
    text = "patient,age,T,E,split\na,50,120.5,1,train\nb,60,300,0,train\n"
    settings = Table(features=("age",), time="T", event="E")
    batch = next(iter(site(write(tmp_path, text), settings, "survival", batch=2).train_dataloader()))
    assert sorted(batch["target"].tolist()) == [[120.5, 1.0], [300.0, 0.0]]
    assert batch["target"].dtype == torch.float32


def test_a_patient_has_one_survival_time(tmp_path: Path) -> None:
    settings = Table(features=("age",), time="T", event="E")
    text = "patient,age,T,E,split\na,50,120,1,train\nb,60,300,0,train\na,51,{},{},train\n"
    assert len(site(write(tmp_path, text.format(120, 1)), settings, "survival").index.cases) == 3
    for time, event in ((121, 1), (120, 0)):
        path = write(tmp_path, text.format(time, event))
        refused(
            path,
            settings,
            "row 2",
            "and row 4",
            "are of one patient and differ in time or event",
            needs="survival",
        )


def test_patients_with_rows_of_several_classes_are_told(tmp_path: Path) -> None:
    settings = Table(features=("age",), target="ill")
    path = write(tmp_path, "patient,age,ill,split\na,50,0,train\na,51,1,train\nb,60,1,train\n")
    notes = site(path, settings, "table").index.notes
    assert any(note.startswith("1 patient has cases of different classes; results count") for note in notes)


def test_words_that_are_numbers(tmp_path: Path) -> None:
    text = "age,pain,disease,split\n40,1.0,0,train\n50,2,1,train\n"
    settings = settings_of(features=("age", "pain"), categorical={"pain": ("1", "2")})
    rows = read_table(write(tmp_path, text), settings, site_secret=SECRET)
    assert rows.words.tolist() == [[1, 0], [0, 1]]


def test_all_rows_of_a_patient_are_in_one_split(tmp_path: Path) -> None:
    text = "patient,age,disease\n" + "".join(f"p{i // 3},{30 + i},0\n" for i in range(90))
    data = site(write(tmp_path, text), settings_of(features=("age",), categorical={}))
    for patient in {case.patient for case in data.index.cases}:
        assert len({case.split for case in data.index.cases if case.patient == patient}) == 1


def refused(path: Path, settings: Table, *words: str, needs: Any = "table") -> None:
    with pytest.raises(DataError, match=words[0]) as caught:
        site(path, settings, needs)
    for word in words:
        assert word in str(caught.value)
    assert MARK.lower() not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (f"x,{MARK},none,70,0,train", ("row 6", "column 'age' holds no number", "data.categorical")),
        ("x,inf,none,70,0,train", ("row 6", "no finite number")),
        (f"x,40,{MARK},70,0,train", ("row 6", "column 'pain' holds a word", "typical, none")),
        ("x,40,none,70,,train", ("row 6", "column 'disease' is empty")),
        ("x,40,none,70,2,train", ("row 6", "column 'disease'", "2 classes")),
        ("x,40,none,70,0,tain", ("row 6", "did you mean 'train'")),
        ("Meier1,40,none,70,0,test", ("one patient is in two splits",)),
        (f"x,40,none,70,0,train,{MARK}", ("row 6 has 7 cells",)),
    ],
)
def test_a_broken_row(tmp_path: Path, row: str, words: tuple[str, ...]) -> None:
    refused(write(tmp_path, ROWS + row + "\n"), settings_of(), *words)


def test_a_missing_column(tmp_path: Path) -> None:
    refused(
        write(tmp_path), settings_of(features=("age", "pain", "ratee")), "no column 'ratee'", "is it 'rate'?"
    )


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / f"{MARK}.csv", settings_of(), "table is not there")


def test_a_folder_with_two_tables(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "other.csv").write_text(ROWS)
    refused(tmp_path, settings_of(), "2 tables, expected one")


def test_a_table_without_rows(tmp_path: Path) -> None:
    refused(write(tmp_path, ROWS.split("\n", 1)[0] + "\n"), settings_of(), "no row to learn from")
