"""One folder per patient: KiTS, BraTS, TotalSegmentator, and what a hospital has; never a class each."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.data.index import index_folder
from medfed.data.layouts.patient_folders import PatientFolders
from medfed.errors import DataError

from ..hospital_folder import MARK, SECRET, index, refused, unreadable


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name.replace("P", MARK)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def files(found) -> list:
    return [
        (case.patient.replace(MARK, "P"), [path.name.replace(MARK, "P") for path in case.image])
        for case in found.cases
    ]


def test_kits(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, f"P{number}/imaging.nii.gz", f"P{number}/segmentation.nii.gz")
        write(tmp_path, f"P{number}/instances/kidney_instance-1_annotation-1.nii.gz")
    indexed = index(tmp_path)
    assert indexed.layout == "one folder per patient"
    assert indexed.class_names == ()
    assert files(indexed) == [(f"P{number}", ["imaging.nii.gz"]) for number in range(3)]
    assert {case.label.name for case in indexed.cases} == {"segmentation.nii.gz"}
    assert all(case.target is None for case in indexed.cases)
    assert indexed.left_out == {"nifti files that no case uses": 3}


def test_brats_has_four_channels_in_one_order_and_can_have_fewer(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path, *(f"P{number}/P{number}-{end}.nii.gz" for end in ("t2w", "t2f", "t1n", "t1c", "seg")))
    indexed = index(tmp_path)
    assert indexed.channels == ("t1c", "t1n", "t2f", "t2w")
    assert files(indexed)[0] == ("P0", [f"P0-{end}.nii.gz" for end in ("t1c", "t1n", "t2f", "t2w")])
    two = index_folder(tmp_path, site_secret=SECRET, layout=PatientFolders(channels=("T2f", "t1c")))
    assert files(two)[0] == ("P0", ["P0-t2f.nii.gz", "P0-t1c.nii.gz"])
    assert two.channels == ("t2f", "t1c")
    none = PatientFolders(channels=("dwi",))
    refused(lambda: index_folder(tmp_path, site_secret=SECRET, layout=none), DataError, "called dwi", "t1c")
    write(tmp_path, "P7/P7-t1c.nii.gz", "P7/P7-seg.nii.gz")
    refusals = unreadable(index(tmp_path))
    assert list(refusals) == ["7"]
    assert "no file for channel 2 and 3 and 4 of 4" in refusals["7"]


def test_totalsegmentator_has_a_mask_per_structure(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path, f"P{number}/ct.nii.gz")
        write(tmp_path, *(f"P{number}/segmentations/{name}.nii.gz" for name in ("liver", "spleen")))
    indexed = index(tmp_path)
    assert files(indexed) == [("P0", ["ct.nii.gz"]), ("P1", ["ct.nii.gz"])]
    assert [[name for name, _ in case.masks] for case in indexed.cases] == [["liver", "spleen"]] * 2
    assert indexed.left_out == {}
    assert "2 with a label" in indexed.describe()


def test_visits_of_a_patient_are_its_cases(tmp_path: Path) -> None:
    for number in range(2):
        for visit in ("2019", "2020"):
            write(tmp_path, f"P{number}/{visit}/flair.nii.gz", f"P{number}/{visit}/lesion_mask.nii.gz")
    indexed = index(tmp_path)
    assert len(indexed.cases) == 4
    assert indexed.patients == 2
    assert all(case.label is not None for case in indexed.cases)


def test_folders_of_patients_below_the_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(2):
            write(tmp_path, f"{split}/P{split}{number}/ct.nii.gz", f"{split}/P{split}{number}/seg.nii.gz")
    indexed = index(tmp_path)
    assert sorted(case.split for case in indexed.cases) == ["test", "test", "train", "train"]


@pytest.mark.parametrize("ends", [("_seg", "_mask"), ("_seg", "_label")])
def test_two_kinds_of_labels_are_not_chosen_from(tmp_path: Path, ends) -> None:
    for number in range(2):
        write(tmp_path, f"P{number}/ct.nii.gz", *(f"P{number}/P{number}{end}.nii.gz" for end in ends))
    refused(lambda: index(tmp_path), DataError, "2 kinds of labels", "pattern")


def test_a_folder_named_on_a_mac_is_named_in_its_files(tmp_path):
    for n in range(3):
        for role in ("t1", "flair", "seg"):
            write(tmp_path, f"Mu\u0308ller{n}/M\u00fcller{n}_{role}.nii.gz")
    result = index_folder(tmp_path, site_secret=SECRET)
    assert result.channels == ("flair", "t1")
    assert [(len(case.image), case.label is not None) for case in result.cases] == [(2, True)] * 3
