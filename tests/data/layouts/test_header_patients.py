"""Patients of DICOM cases whose layout names none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hard_series import Series

from medfed.data.index import Index, index_folder
from medfed.data.layouts import layout_of
from medfed.data.layouts._header_patients import BY_HEADERS, OTHERS
from medfed.data.preflight.preflight import check
from medfed.errors import DataError

from ..hospital_folder import SECRET, write_nifti
from .dicom_folders import put

SMALL = Series(shape=(5, 4, 6))


def two_series_per_patient(folder: Path, **values: object) -> None:
    """Write four patients of two classes, with two series each, in folders that name no patient."""
    for patient in range(4):
        for number in range(2):
            place = folder / ("benign", "malignant")[patient % 2] / f"s{patient}{number}"
            own = {"PatientID": f"P{patient}", "StudyInstanceUID": f"1.2.{patient}", **values}
            uids = {"SeriesInstanceUID": f"1.3.{patient}.{number}", "FrameOfReferenceUID": f"1.4.{patient}"}
            put(place, SMALL, **own, **uids)


def patients(indexed: Index) -> list[str]:
    return [case.patient for case in indexed.cases]


def index(folder: Path, layout: object = None) -> Index:
    given = layout_of(layout) if layout else None
    return index_folder(folder, site_secret=SECRET, layout=given)


@pytest.mark.parametrize("layout", ["class_folders", {"kind": "pattern", "image": "{class}/{case}/"}])
def test_series_of_one_patient_are_one_patients(tmp_path: Path, layout: object) -> None:
    two_series_per_patient(tmp_path)
    indexed = index(tmp_path, layout)
    assert patients(indexed) == ["P0", "P0", "P2", "P2", "P1", "P1", "P3", "P3"]
    assert indexed.notes == (BY_HEADERS,)
    splits = {(case.patient, case.split) for case in indexed.cases}
    assert len(splits) == indexed.patients == 4


def test_a_study_joins_series_without_an_id(tmp_path: Path) -> None:
    two_series_per_patient(tmp_path, PatientID="", PatientName="")
    indexed = index(tmp_path, "class_folders")
    assert indexed.patients == 4
    assert any("do not say whose they are" in note for note in indexed.notes)


def test_a_table_without_a_column_of_patients(tmp_path: Path) -> None:
    two_series_per_patient(tmp_path)
    rows = [f"c{p}{n},{('benign', 'malignant')[p % 2]}/s{p}{n},{p % 2}" for p in range(4) for n in range(2)]
    table = tmp_path / "cases.csv"
    table.write_text("\n".join(["case,image,target", *rows]))
    assert index(tmp_path).patients == 4
    assert check(tmp_path, site_secret=SECRET, processes=1).facts["patients"] == 4
    named = [f"{row},own{number}" for number, row in enumerate(rows)]
    table.write_text("\n".join(["case,image,target,patient", *named]))
    assert index(tmp_path).patients == 8


def test_one_patient_in_two_folders_of_splits_is_refused(tmp_path: Path) -> None:
    two_series_per_patient(tmp_path / "train")
    assert index(tmp_path, "class_folders").patients == 4
    (tmp_path / "test" / "benign").mkdir(parents=True)
    (tmp_path / "train" / "benign" / "s00").rename(tmp_path / "test" / "benign" / "s00")
    with pytest.raises(DataError, match="one patient is in two splits"):
        index(tmp_path, "class_folders")


def test_images_without_a_header_are_patients_of_their_own(tmp_path: Path) -> None:
    two_series_per_patient(tmp_path)
    write_nifti(tmp_path / "benign" / "x.nii.gz", np.zeros((4, 4, 4), np.float32))
    indexed = index(tmp_path, "class_folders")
    assert indexed.patients == 5
    assert indexed.notes == (f"{BY_HEADERS}; {OTHERS}",)
