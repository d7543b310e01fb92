"""One folder per class, directly or below the splits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medfed.data.index import index_folder
from medfed.data.layouts._class_words import is_class_name
from medfed.data.layouts.class_folders import ClassFolders
from medfed.errors import DataError

from ..hospital_folder import MARK, SAMPLES, SECRET, index, refused, write_nifti


def class_folders(folder: Path, *, parents: tuple[str, ...] = ("",)) -> None:
    for parent in parents:
        for name, count in (("healthy", 5), ("tumour", 4)):
            for i in range(count):
                write_nifti(
                    folder / parent / name / f"{MARK}{parent}{name[0]}{i}.nii.gz",
                    np.zeros((4, 4, 4), np.float32),
                )


def test_a_folder_a_class(tmp_path: Path) -> None:
    class_folders(tmp_path)
    indexed = index(tmp_path)
    assert indexed.layout == "one folder per class"
    assert indexed.class_names == ("healthy", "tumour")
    assert [case.target for case in indexed.cases] == [0] * 5 + [1] * 4


def test_a_folder_a_class_below_a_folder_a_split(tmp_path: Path) -> None:
    class_folders(tmp_path, parents=("train", "val", "test"))
    indexed = index(tmp_path)
    assert [(case.split, case.target) for case in indexed.cases].count(("val", 1)) == 4
    assert len(indexed.cases) == 27


def test_a_class_may_be_called_lesion(tmp_path: Path) -> None:
    for name in ("lesion", "normal"):
        for i in range(4):
            write_nifti(tmp_path / name / f"{MARK}{name[0]}{i}.nii.gz", np.zeros((4, 4, 4), np.float32))
    assert index(tmp_path).class_names == ("lesion", "normal")
    for i in range(4):
        (tmp_path / "lesion" / f"{MARK}l{i}.nii.gz").rename(tmp_path / "lesion" / f"{MARK}n{i}_seg.nii.gz")
    assert index(tmp_path).layout == "images beside labels"


NONE_FITS = "holds nothing that medfed knows for certain"


@pytest.mark.parametrize(
    "files",
    [
        # One file each, as of patients; visits of the same names; names after the patient; dates.
        ("{}.nii.gz",),
        tuple(f"visit{i}.nii.gz" for i in range(5)),
        tuple("{}_" + f"{i}.nii.gz" for i in range(5)),
        ("a.nii.gz", "b.nii.gz", "x{}.nii.gz", "y{}.nii.gz", "z{}.nii.gz"),
    ],
)
def test_folders_that_may_be_patients_are_never_classes_unless_that_is_said(tmp_path: Path, files) -> None:
    for number in range(4):
        patient = f"{MARK}{number}"
        for file in files:
            write_nifti(tmp_path / patient / file.format(patient), np.zeros((4, 4, 4), np.float32))
    refused(lambda: index(tmp_path), DataError, NONE_FITS, "`layout`", "--layout", "class_folders", "nifti")
    indexed = index_folder(tmp_path, site_secret=SECRET, layout=ClassFolders())
    assert indexed.class_names == tuple(f"{MARK}{number}" for number in range(4))
    assert len(indexed.cases) == 4 * len(files)


@pytest.mark.parametrize("parents", [("",), ("train", "val", "test")])
@pytest.mark.parametrize("names", [("Meier", "Schmidt"), ("benign", "Schmidt"), ("0", "1"), ("P001", "P002")])
def test_two_patients_with_many_images_each_are_no_classes(
    tmp_path: Path, parents: tuple[str, ...], names: tuple[str, str]
) -> None:
    """A camera counts on over patients; a data set split image by image has each of them in all splits."""
    number = 0
    for parent in parents:
        for name in names:
            for _ in range(60):
                number += 1
                path = tmp_path / parent / name / f"IMG_{number:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(lambda: index(tmp_path), DataError, NONE_FITS, "class_folders", "--layout")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((name, True) for name in ("normal", "Pneumonia", "COVID-19", "no_tumor", "NoTumor", "glioma")),
        *((name, True) for name in ("BI-RADS 4", "akiec", "melanocytic nevi", "class_0", "sain", "grade 3")),
        *((name, False) for name in ("Meier", "Young", "Stein", "Jane Doe", "benign Meier", "P1", "case 12")),
        *(
            (name, False)
            for name in ("no", "12", "grade 123", "stage 1 2", "lesion 01", "2020-01-02", "Ωmega")
        ),
    ],
)
def test_only_words_for_findings_name_classes_unasked(name: str, known: bool) -> None:
    assert is_class_name(name) is known


def test_dated_scans_of_patients_are_no_classes(tmp_path: Path) -> None:
    for number in range(3):
        for day in range(10, 15):
            write_nifti(
                tmp_path / f"{MARK}{number}" / f"2020-0{number + 1}-{day}.nii.gz", np.zeros((4, 4, 4))
            )
    refused(lambda: index(tmp_path), DataError, NONE_FITS)


def test_a_folder_of_images_beside_one_of_unmatched_labels_is_no_pair_of_classes(tmp_path: Path) -> None:
    for number in range(12):
        write_nifti(tmp_path / "images" / f"{MARK}{number}.nii.gz", np.zeros((4, 4, 4), np.float32))
        write_nifti(tmp_path / "ground_truth" / f"x{number}.nii.gz", np.zeros((4, 4, 4), np.float32))
    refused(lambda: index(tmp_path), DataError, NONE_FITS)


def test_classes_of_dicom_series_are_read_where_it_is_said(tmp_path: Path) -> None:
    for name, case in (("healthy", "north-01"), ("healthy", "north-02"), ("tumour", "north-03")):
        shutil.copytree(SAMPLES / "north" / "images" / case, tmp_path / name / f"{MARK}{case}")
    indexed = index_folder(tmp_path, site_secret=SECRET, layout=ClassFolders())
    assert [(case.target, case.image[0].name) for case in indexed.cases] == [
        (0, f"{MARK}north-01"),
        (0, f"{MARK}north-02"),
        (1, f"{MARK}north-03"),
    ]
    assert indexed.left_out == {}
    assert indexed.class_names == ("healthy", "tumour")
