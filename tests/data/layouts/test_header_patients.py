"""Whose cases are is read from DICOM headers where neither the folder nor its table says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hard_series import Series

from medfed.data.folder_options import FolderOptions
from medfed.data.index import Index, index_folder
from medfed.data.layouts._layout import NO_PATIENTS, Layout
from medfed.data.layouts.class_folders import ClassFolders
from medfed.data.preflight.preflight import check
from medfed.errors import DataError

from ..hospital_folder import MARK, SECRET, write_nifti
from .dicom_folders import put

FILM = Series(shape=(1, 5, 7), modality="DX")
TOLD = "6 cases are of 3 patients by their DICOM headers: nothing else names them"


def films(folder: Path, patients: list[str], *, below: str = "") -> None:
    """Write a film per patient's id, each a study of its own, half of them in each class."""
    for number, patient in enumerate(patients):
        (path,) = put(
            folder / f"write{number}",
            FILM,
            PatientID=patient,
            StudyInstanceUID=f"1.2.3.{number}",
            FrameOfReferenceUID=f"1.2.4.{number}",
            SeriesInstanceUID=f"1.2.5.{number}",
        )
        target = folder / ("healthy" if number % 2 else "tumour") / below
        target.mkdir(parents=True, exist_ok=True)
        path.rename(target / f"{MARK}{number}.dcm")
        path.parent.rmdir()


def index(folder: Path, layout: Layout | None = None) -> Index:
    return index_folder(folder, site_secret=SECRET, layout=layout)


def table(folder: Path, rows: list[str], columns: str = "case,image,target") -> None:
    (folder / "cases.csv").write_text("\n".join((columns, *rows)) + "\n")


def groups(cases) -> list[list[str]]:
    """Return the cases' ids by patient."""
    result: dict[str, list[str]] = {}
    for case in cases:
        result.setdefault(case.patient, []).append(case.id)
    return sorted(sorted(ids) for ids in result.values())


TWO_EACH = ["A", "A", "B", "B", "C", "C"]


def test_two_films_of_one_patient_in_class_folders_are_one_patient(tmp_path: Path) -> None:
    films(tmp_path, TWO_EACH)
    indexed = index(tmp_path, layout=ClassFolders())
    assert groups(indexed.cases) == [[f"healthy/{MARK}{i + 1}", f"tumour/{MARK}{i}"] for i in (0, 2, 4)]
    assert TOLD in indexed.notes
    assert NO_PATIENTS not in indexed.notes
    assert "3 patients have cases of different classes" in " ".join(indexed.notes)
    checked = check(tmp_path, options=FolderOptions(ClassFolders()))
    assert (checked.facts["cases"], checked.facts["patients"]) == (6, 3)


def test_a_table_without_patients_and_check_tell_them_apart_by_headers(tmp_path: Path) -> None:
    films(tmp_path, TWO_EACH)
    names = ["tumour/{}{}.dcm", "healthy/{}{}.dcm"]
    table(tmp_path, [f"c{i},{names[i % 2].format(MARK, i)},{i % 2}" for i in range(6)])
    indexed = index(tmp_path)
    assert groups(indexed.cases) == [["c0", "c1"], ["c2", "c3"], ["c4", "c5"]]
    assert indexed.notes[0] == TOLD
    assert check(tmp_path).facts["patients"] == 3


def test_what_the_table_says_goes_first_and_headers_only_join(tmp_path: Path) -> None:
    films(tmp_path, TWO_EACH)
    names = [f"{'healthy' if i % 2 else 'tumour'}/{MARK}{i}.dcm" for i in range(6)]
    # c0 and c2 are one patient's by the table, c0 is A's by its header as c1, and c2 says B, as does c3: the
    # rows that state another name than their own id are not asked. c4's and c5's cells are empty.
    patients = ["c0", "", "c0", "other", "", ""]
    rows = [f"c{i},{patients[i]},{names[i]},{i % 2}" for i in range(6)]
    table(tmp_path, rows, "case,patient,image,target")
    assert groups(index(tmp_path).cases) == [["c0", "c1", "c2"], ["c3"], ["c4", "c5"]]


def test_a_series_a_folder_in_a_class_is_of_its_header_s_patient(tmp_path: Path) -> None:
    for number, patient in enumerate(TWO_EACH):
        folder = tmp_path / ("a" if number % 2 else "b") / f"{MARK}{number}"
        put(folder, Series(shape=(6, 5, 7)), PatientID=patient, StudyInstanceUID=f"1.2.3.{number}",
            FrameOfReferenceUID=f"1.2.4.{number}", SeriesInstanceUID=f"1.2.5.{number}")  # fmt: skip
    assert len(groups(index(tmp_path, layout=ClassFolders()).cases)) == 3


def test_films_that_all_say_anonymous_are_told_apart_by_their_studies(tmp_path: Path) -> None:
    films(tmp_path, ["ANONYMOUS"] * 6)
    indexed = index(tmp_path, layout=ClassFolders())
    assert len(groups(indexed.cases)) == 6
    assert any("do not say whose they are" in note for note in indexed.notes)


def test_pictures_beside_films_stay_patients_of_their_own(tmp_path: Path) -> None:
    films(tmp_path, TWO_EACH)
    write_nifti(tmp_path / "healthy" / "x.nii.gz", np.zeros((4, 4, 1), np.float32))
    indexed = index(tmp_path, layout=ClassFolders())
    assert len(groups(indexed.cases)) == 4
    assert f"{TOLD}; 1 other cases count as patients of their own" in indexed.notes


def test_one_patient_in_two_given_splits_is_refused(tmp_path: Path) -> None:
    films(tmp_path / "train", ["A", "B", "C", "D"])
    films(tmp_path / "test", ["D", "E", "F", "G"])
    with pytest.raises(DataError, match="one patient is in two splits"):
        index(tmp_path, layout=ClassFolders())
