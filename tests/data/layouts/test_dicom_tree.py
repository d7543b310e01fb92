"""A tree of DICOM series with the segmentations that reference them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid

from medfed.data.datamodule import SiteDataModule

from ..hospital_folder import NATIVE, SAMPLES, index
from .dicom_folders import put


def test_a_tree_of_dicom_series_with_segmentations(tmp_path: Path) -> None:
    source = SAMPLES / "north"
    for case in ("north-01", "north-02", "north-05"):
        shutil.copytree(source / "images" / case, tmp_path / "archive" / case / "ct")
    for case in ("north-01", "north-02"):  # names say nothing: the reference in the header does
        shutil.copy(
            source / "labels" / f"{case}.dcm", tmp_path / "archive" / f"{'ab'[case == 'north-01']}.dcm"
        )
    shutil.copy(source / "images" / "north-03" / "IM0001.dcm", tmp_path / "archive" / "scout.dcm")
    indexed = index(tmp_path)
    assert indexed.layout == "a tree of DICOM series"
    labels = {case.patient: case.label and case.label.name for case in indexed.cases}
    assert labels == {"N01": "b.dcm", "N02": "a.dcm", "N05": None}
    assert indexed.left_out == {
        "DICOM files (an image of a series of fewer than 5 slices, like a localizer)": 1
    }
    data = SiteDataModule(indexed, NATIVE, "segment", classes=2)
    assert any("1 cases have no label" in note for note in data.notes)
    for case in indexed.cases:
        if case.label is not None:
            _, label = data.original(case)
            by_table = SiteDataModule(index(source), NATIVE, "segment", classes=2)
            same = next(c for c in by_table.index.cases if c.patient == case.patient)
            expected = by_table.original(same)[1]
            assert label is not None
            assert expected is not None
            np.testing.assert_array_equal(label.array, expected.array)
            assert label.array.any()


def test_two_segmentations_of_one_series_are_both_given(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "north" / "images" / "north-01", tmp_path / "ct")
    for name in ("one", "two"):
        shutil.copy(SAMPLES / "north" / "labels" / "north-01.dcm", tmp_path / f"{name}.dcm")
    (case,) = index(tmp_path).cases
    assert case.label is None
    assert [(name, path.name) for name, path in case.masks] == [("", "one.dcm"), ("", "two.dcm")]


def test_a_tree_of_folders_called_after_findings_is_told_of_class_folders(
    tmp_path: Path,
) -> None:
    for name in ("benign", "malignant"):
        put(tmp_path / name / "p", PatientID=name, SeriesInstanceUID=generate_uid())
    indexed = index(tmp_path)
    assert [case.target for case in indexed.cases] == [None, None]
    assert any("2 folders are called by words for findings" in note for note in indexed.notes)
    (tmp_path / "malignant").rename(tmp_path / "Meier")
    assert not any("findings" in note for note in index(tmp_path).notes)
