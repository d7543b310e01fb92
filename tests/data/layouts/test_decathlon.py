"""The Medical Segmentation Decathlon: one file per case beside its label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ..hospital_folder import index, unreadable, write_nifti
from .decathlon_folder import decathlon


def test_the_decathlons_layout(tmp_path: Path) -> None:
    decathlon(tmp_path, ["hippocampus_001", "hippocampus_002", "hippocampus_010"])
    write_nifti(tmp_path / "imagesTs" / "hippocampus_900.nii.gz", np.zeros((4, 4, 4), np.float32))
    listing = index(tmp_path)
    assert listing.layout == "Medical Segmentation Decathlon"
    assert [case.id for case in listing.cases] == ["hippocampus_001", "hippocampus_002", "hippocampus_010"]
    assert listing.class_names == ("background", "anterior", "posterior")
    assert {case.split for case in listing.cases} == {"train", "val", "test"}
    assert listing.label_names == {0: "background", 1: "anterior", 2: "posterior"}
    assert listing.channels == ("MRI",)
    reason = "images in imagesTs, which has no labels; medfed cuts a test split from imagesTr"
    assert listing.left_out == {reason: 1, "hidden files": 2}


def test_a_label_without_its_image(tmp_path: Path) -> None:
    decathlon(tmp_path, ["x1", "x2"])
    (tmp_path / "imagesTr" / "x2.nii.gz").unlink()
    reasons = unreadable(index(tmp_path))
    assert list(reasons) == ["x2"]
    assert "a label of this name and no image" in reasons["x2"]


def test_one_file_per_case_under_an_nnunets_description(tmp_path: Path) -> None:
    decathlon(tmp_path, ["x1"], nnunet=True)
    (tmp_path / "imagesTr" / "x1_0000.nii.gz").rename(tmp_path / "imagesTr" / "x1.nii.gz")
    (tmp_path / "imagesTr" / "x1_0001.nii.gz").unlink()
    listing = index(tmp_path)
    assert listing.layout == "Medical Segmentation Decathlon"
    assert [case.image for case in listing.cases] == [(tmp_path / "imagesTr" / "x1.nii.gz",)]
    assert listing.label_names == {0: "background", 1: "tumour"}


@pytest.mark.parametrize("nnunet", [False, True], ids=["decathlon", "nnunet"])
def test_two_files_of_one_name_cost_their_case_alone(tmp_path: Path, nnunet: bool) -> None:
    decathlon(tmp_path, ["x1", "x2", "x3"], nnunet=nnunet)
    image = "x1_0000.nii" if nnunet else "x1.nii"
    write_nifti(tmp_path / "imagesTr" / image, np.ones((4, 4, 4), np.float32))
    write_nifti(tmp_path / "labelsTr" / "x2.nii", np.ones((4, 4, 4), np.uint8))
    indexed = index(tmp_path)
    assert [case.id for case in indexed.cases] == ["x1", "x2", "x3"]
    refusals = unreadable(indexed)
    assert sorted(refusals) == ["x1", "x2"]
    what = "the channel _0000" if nnunet else "its image (as .nii and .nii.gz, or in two formats)"
    assert refusals["x1"] == f"it has several files for {what}; keep one"
    assert refusals["x2"].startswith("it has several files for its label (as .nii and .nii.gz")
