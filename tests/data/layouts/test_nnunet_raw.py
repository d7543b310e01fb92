"""nnU-Net's raw data: channels as numbered files, with or without dataset.json."""

from __future__ import annotations

from pathlib import Path

from ..hospital_folder import index, unreadable
from .decathlon_folder import decathlon


def test_the_nnunet_layout(tmp_path: Path) -> None:
    decathlon(tmp_path, ["case_1", "case_2"], nnunet=True)
    listing = index(tmp_path)
    assert listing.layout == "nnU-Net raw"
    assert [[path.name for path in case.image] for case in listing.cases] == [
        ["case_1_0000.nii.gz", "case_1_0001.nii.gz"],
        ["case_2_0000.nii.gz", "case_2_0001.nii.gz"],
    ]
    assert listing.class_names == ("background", "tumour")


def test_numbered_channels_without_a_description_are_channels(tmp_path: Path) -> None:
    decathlon(tmp_path, ["x1", "x2"], nnunet=True)
    (tmp_path / "dataset.json").unlink()
    listing = index(tmp_path)
    assert listing.layout == "nnU-Net raw"
    assert [[path.name for path in case.image] for case in listing.cases] == [
        ["x1_0000.nii.gz", "x1_0001.nii.gz"],
        ["x2_0000.nii.gz", "x2_0001.nii.gz"],
    ]
    assert listing.label_names == {}
    (tmp_path / "imagesTr" / "x2_0000.nii.gz").unlink()
    reasons = unreadable(index(tmp_path))
    assert list(reasons) == ["x2"]
    assert "it has no file for channel 1 of 2" in reasons["x2"]
