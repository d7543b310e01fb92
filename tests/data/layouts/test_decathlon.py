"""The Medical Segmentation Decathlon's folders and nnU-Net's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from medfed.data.splits import case_token
from medfed.errors import DataError, ImageError

from ..hospital_folder import SECRET, index, refused, write_nifti


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
    assert any("imagesTs" in note for note in found.notes)


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
    refused(lambda: index(tmp_path), ImageError, case_token(SECRET, "x2"), "imagesTr lacks its image")


def test_a_decathlons_names_under_an_nnunets_description(tmp_path: Path) -> None:
    decathlon(tmp_path, ["x1"], nnunet=True)
    (tmp_path / "imagesTr" / "x1_0000.nii.gz").rename(tmp_path / "imagesTr" / "x1.nii.gz")
    refused(lambda: index(tmp_path), DataError, "expected as CASE_0000;", "omit channel_names")
