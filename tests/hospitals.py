"""Tiny hospitals of NIfTI files, for tests that need real files but no learning."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np

SIDE = 16

STUDY = """\
name: tiny
seed: 1
task: {{kind: segment, classes: [background, lesion]}}
network: {{kind: unet, channels: [4, 8], residual_units: 0}}
data: {{kind: images, spacing_mm: [2, 2, 2], patch: [16, 16, 16]}}
train: {{rounds: {rounds}, epochs: 1, batch: 2, optimiser: {{kind: adamw, lr: 0.01}}}}
sampling: {{minimum: 2}}
evaluation: {{draws: 50, smallest_group: 1}}
sites: {{north: north, south: south}}
held_out: {{west: west}}
"""


def make_hospital(folder: Path, cases: int = 6, *, mark: str = "") -> Path:
    """Write a hospital's images (bright boxes in noise), masks and cases.csv.

    `mark` is put wherever a patient's name may stand, but not in the column `scanner`, which is reported in
    groups of at least `smallest_group` patients.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(sum(folder.name.encode()))
    rows = []
    for number in range(cases):
        image = generator.normal(0, 1, (SIDE,) * 3).astype(np.float32)
        label = np.zeros((SIDE,) * 3, np.uint8)
        x, y, z = generator.integers(2, 9, 3)
        label[x : x + 5, y : y + 5, z : z + 5] = 1
        image += 4 * label
        name = f"{mark}{folder.name}{number}"
        for array, kind in ((image, "image"), (label, "label")):
            saved = nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0]))
            saved.header["descrip"] = f"{mark} {kind}".encode()[:79]
            nibabel.save(saved, folder / f"{name}-{kind}.nii.gz")
        split = ("train", "train", "train", "train", "val", "test")[number % 6]
        rows.append(
            [
                name,
                f"{mark}P{folder.name}{number}",
                f"{name}-image.nii.gz",
                f"{name}-label.nii.gz",
                1,
                split,
                "FM"[number % 2],
                40 + number,
                "Scanner A",
            ]
        )
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["case", "patient", "image", "label", "target", "split", "sex", "age", "scanner"], *rows]
        )
    return folder


def write_study(folder: Path, rounds: int = 3) -> Path:
    """Write a study of the tiny hospitals."""
    path = folder / "tiny.yaml"
    path.write_text(STUDY.format(rounds=rounds))
    return path
