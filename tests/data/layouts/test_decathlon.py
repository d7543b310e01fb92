"""The Medical Segmentation Decathlon's folders and nnU-Net's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medfed.errors import DataError

from ..hospital_folder import index, refused, unreadable, write_nifti


def decathlon(folder: Path, names: list[str], *, nnunet: bool = False) -> None:
    for name in names:
        for channel in ("_0000", "_0001") if nnunet else ("",):
            write_nifti(folder / "imagesTr" / f"{name}{channel}.nii.gz", np.zeros((4, 4, 4), np.float32))
        write_nifti(folder / "labelsTr" / f"{name}.nii.gz", np.zeros((4, 4, 4), np.uint8))
    # The Decathlon's archives carry macOS's shadow files.
    (folder / "imagesTr" / f"._{names[0]}.nii.gz").write_bytes(b"\0\5\x16\7")
    (folder / "labelsTr" / f"._{names[0]}.nii.gz").write_bytes(b"\0\5\x16\7")
    if nnunet:
        described = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}}
    else:
        described = {
            "labels": {"0": "background", "1": "anterior", "2": "posterior"},
            "modality": {"0": "MRI"},
        }
    (folder / "dataset.json").write_text(json.dumps(described))


def test_the_decathlons_layout(tmp_path: Path) -> None:
    decathlon(tmp_path, ["hippocampus_001", "hippocampus_002", "hippocampus_010"])
    write_nifti(tmp_path / "imagesTs" / "hippocampus_900.nii.gz", np.zeros((4, 4, 4), np.float32))
    found = index(tmp_path)
    assert found.layout == "Medical Segmentation Decathlon"
    assert [case.id for case in found.cases] == ["hippocampus_001", "hippocampus_002", "hippocampus_010"]
    assert found.class_names == ("background", "anterior", "posterior")
    assert {case.split for case in found.cases} == {"train", "val", "test"}
    assert found.label_names == {0: "background", 1: "anterior", 2: "posterior"}
    assert found.channels == ("MRI",)
    reason = "images in imagesTs, which has no labels; medfed cuts a test split from imagesTr"
    assert found.left_out == {reason: 1}


def test_the_nnunet_layout(tmp_path: Path) -> None:
    decathlon(tmp_path, ["case_1", "case_2"], nnunet=True)
    found = index(tmp_path)
    assert found.layout == "nnU-Net raw"
    assert [[path.name for path in case.image] for case in found.cases] == [
        ["case_1_0000.nii.gz", "case_1_0001.nii.gz"],
        ["case_2_0000.nii.gz", "case_2_0001.nii.gz"],
    ]
    assert found.class_names == ("background", "tumour")


def test_a_label_without_its_image(tmp_path: Path) -> None:
    decathlon(tmp_path, ["x1", "x2"])
    (tmp_path / "imagesTr" / "x2.nii.gz").unlink()
    told = unreadable(index(tmp_path))
    assert list(told) == ["x2"]
    assert "a label of this name and no image" in told["x2"]


def test_one_file_per_case_under_an_nnunets_description(tmp_path: Path) -> None:
    decathlon(tmp_path, ["x1"], nnunet=True)
    (tmp_path / "imagesTr" / "x1_0000.nii.gz").rename(tmp_path / "imagesTr" / "x1.nii.gz")
    (tmp_path / "imagesTr" / "x1_0001.nii.gz").unlink()
    found = index(tmp_path)
    assert found.layout == "Medical Segmentation Decathlon"
    assert [case.image for case in found.cases] == [(tmp_path / "imagesTr" / "x1.nii.gz",)]
    assert found.label_names == {0: "background", 1: "tumour"}


def test_numbered_channels_without_a_description_are_channels(tmp_path: Path) -> None:
    decathlon(tmp_path, ["x1", "x2"], nnunet=True)
    (tmp_path / "dataset.json").unlink()
    found = index(tmp_path)
    assert found.layout == "nnU-Net raw"
    assert [[path.name for path in case.image] for case in found.cases] == [
        ["x1_0000.nii.gz", "x1_0001.nii.gz"],
        ["x2_0000.nii.gz", "x2_0001.nii.gz"],
    ]
    assert found.label_names == {}
    (tmp_path / "imagesTr" / "x2_0000.nii.gz").unlink()
    told = unreadable(index(tmp_path))
    assert list(told) == ["x2"]
    assert "it has no file for channel 1 of 2" in told["x2"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "regions"),
        ({"background": 0, "tumour": "one"}, "one number"),
        ({}, "does not name its labels"),
    ],
)
def test_labels_that_are_no_numbers_are_refused_with_the_reason(tmp_path, labels, message) -> None:
    decathlon(tmp_path, ["x1"], nnunet=True)
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "a", "1": "b"}, "labels": labels})
    )
    refused(lambda: index(tmp_path), DataError, message)


@pytest.mark.parametrize("nnunet", [False, True], ids=["decathlon", "nnunet"])
def test_two_files_of_one_name_cost_their_case_alone(tmp_path: Path, nnunet: bool) -> None:
    decathlon(tmp_path, ["x1", "x2", "x3"], nnunet=nnunet)
    image = "x1_0000.nii" if nnunet else "x1.nii"
    write_nifti(tmp_path / "imagesTr" / image, np.ones((4, 4, 4), np.float32))
    write_nifti(tmp_path / "labelsTr" / "x2.nii", np.ones((4, 4, 4), np.uint8))
    found = index(tmp_path)
    assert [case.id for case in found.cases] == ["x1", "x2", "x3"]
    told = unreadable(found)
    assert sorted(told) == ["x1", "x2"]
    what = "the channel _0000" if nnunet else "its image (as .nii and .nii.gz, or in two formats)"
    assert told["x1"] == f"it has several files for {what}; keep one"
    assert told["x2"].startswith("it has several files for its label (as .nii and .nii.gz")
