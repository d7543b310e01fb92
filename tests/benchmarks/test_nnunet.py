"""What nnU-Net is given beside the hippocampus benchmark: the same training cases, in one orientation."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

PLACE = Path(__file__).parents[2] / "benchmarks" / "nnunet.py"


@pytest.fixture(scope="module")
def nnunet():
    spec = importlib.util.spec_from_file_location("nnunet_benchmark", PLACE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hospital(folder: Path, axes: str) -> Path:
    """Return a hospital of three cases whose files lie along these axes."""
    folder.mkdir()
    lines = [["case", "patient", "image", "label", "split"]]
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
    )
    for split in ("train", "val", "test"):
        name = f"{folder.name}-{split}"
        for kind, shift in (("image", 0), ("label", 100)):
            voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4) + shift
            volume = nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])).as_reoriented(turn)
            nibabel.save(volume, folder / f"{name}-{kind}.nii.gz")
        lines.append([name, name, f"{name}-image.nii.gz", f"{name}-label.nii.gz", split])
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return folder


def test_training_cases_alone_train_and_each_lies_in_one_orientation(nnunet, tmp_path) -> None:
    hospitals = [hospital(tmp_path / "north", "RAS"), hospital(tmp_path / "south", "PIL")]
    assert nnunet.write_dataset(hospitals, tmp_path / "raw") == {
        "north": ["north-test"],
        "south": ["south-test"],
    }
    raw = tmp_path / "raw" / nnunet.DATASET
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 2
    found = sorted(str(path.relative_to(raw)) for path in raw.rglob("*.nii.gz"))
    assert found == [
        "imagesTr/north-train_0000.nii.gz", "imagesTr/south-train_0000.nii.gz",
        "imagesTs/north-test_0000.nii.gz", "imagesTs/south-test_0000.nii.gz",
        "labelsTr/north-train.nii.gz", "labelsTr/south-train.nii.gz",
        "labelsTs/north-test.nii.gz", "labelsTs/south-test.nii.gz",
    ]  # fmt: skip
    for site in ("north", "south"):
        volume = nibabel.load(raw / "labelsTs" / f"{site}-test.nii.gz")
        assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(volume.dataobj, np.arange(24).reshape(2, 3, 4) + 100)


def test_dice_and_epochs_by_hand(nnunet) -> None:
    predicted, reference = np.array([1, 1, 2, 0]), np.array([1, 2, 2, 2])
    assert nnunet.dice(predicted, reference, 1) == pytest.approx(2 * 1 / (2 + 1))
    assert nnunet.dice(predicted, reference, 2) == pytest.approx(2 * 1 / (1 + 3))
    # A trial of 2 steps and 1 of validation in 6 s: 2 s each, 22 s an epoch of 10 and 1; 5 of them in 120 s.
    assert nnunet.epochs_within(120, 6.0) == 5
    assert nnunet.epochs_within(1, 6.0) == 1
