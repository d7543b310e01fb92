"""What a folder is taken for, and what is said about one that is broken: which case, which row, the remedy,
no patient.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medfed.data.index import index_folder
from medfed.data.layouts.pattern import Pattern
from medfed.errors import DataError

from .hospital_folder import MARK, SAMPLES, folder_of, index, refused, row, token


@pytest.mark.parametrize("hospital", ["north", "east", "south", "west", "university"])
def test_the_sample_hospitals(hospital: str) -> None:
    indexed = index(SAMPLES / hospital)
    assert indexed.layout == "cases.csv"
    assert len(indexed.cases) == 18
    assert indexed.patients == 16
    assert "18 cases of 16 patients" in indexed.describe()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(lambda: index(tmp_path / MARK), DataError, "not a folder", "site file")


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / MARK).mkdir()
    refused(lambda: index(tmp_path / MARK), DataError, "nothing that medfed knows", "cases.csv")


def test_a_short_secret(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="8 bytes; at least 16"):
        index_folder(folder_of(tmp_path, [row("a")]), site_secret=b"12345678")


def test_a_patient_in_two_splits(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a", patient=MARK), row("b", patient=MARK, split="test"), row("c")])
    refused(lambda: index(folder), DataError, token("a"), token("b"), "two splits", "one split")


def test_the_index_writes_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a")])
    before = sorted(path.name for path in folder.iterdir())
    index(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_patients_whose_ids_look_alike_are_one_in_every_layout(tmp_path: Path) -> None:
    ids = ("Mu\u0308ller", "M\u00fcller", "M\u00fcller\u200b")
    for number, patient in enumerate(ids):
        (tmp_path / "images" / patient).mkdir(parents=True)
        (tmp_path / "images" / patient / f"{number}.png").touch()
    pattern = Pattern(image="images/{patient}/*.png")
    listed = index_folder(tmp_path, site_secret=b"s" * 32, layout=pattern)
    assert {case.patient for case in listed.cases} == {"M\u00fcller"}


def test_a_name_that_is_no_utf_8_is_a_case_like_others(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for name in (b"a", b"p\xff"):
            Path(os.fsdecode(os.fsencode(tmp_path / folder) + b"/" + name + b".nii.gz")).touch()
    indexed = index(tmp_path)
    assert sorted(os.fsencode(case.id) for case in indexed.cases) == [b"a", b"p\xff"]
