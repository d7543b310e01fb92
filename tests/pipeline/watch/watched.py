"""Runs whose models are known, and hospitals' new cases with and without a shift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from hospitals import SIDE

from medfed.pipeline.create_run import create_run
from medfed.pipeline.factory import module_of
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_study
from medfed.wire.weights import weights_of

TABLE = """\
name: watched
seed: 3
task: {kind: tabular, classes: [healthy, ill], loss: {kind: binary_cross_entropy}}
network: {kind: fully_connected, hidden: []}
data: {kind: table, features: [x, sex], categorical: {sex: [f, m]}, target: ill, standardise: none}
train: {rounds: 1}
evaluation: {draws: 20, smallest_group: 5}
sites: {north: north.csv}
"""
IMAGES = """\
name: watched
seed: 3
task: {kind: segment, classes: [background, lesion]}
network: {kind: unet, channels: [4, 8], residual_units: 0}
data: {kind: images, spacing_mm: [2, 2, 2], patch: [16, 16, 16]}
train: {rounds: 1}
evaluation: {draws: 20, smallest_group: 5}
sites: {north: north}
"""


def run_of(folder: Path, study: str) -> RunFolder:
    """Write a run of this study. A table's model gives sigmoid(2 x); one of images has random weights."""
    folder.mkdir(parents=True)
    (folder / "study-file.yaml").write_text(study)
    read, run = read_study(folder / "study-file.yaml"), RunFolder(folder / "run")
    create_run(run, read, {})
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in weights_of(module_of(read)).items()
    }
    if "kind: table" in study:
        weights = {
            name: torch.tensor([[2.0, 0.0, 0.0]]) if tensor.ndim == 2 else torch.zeros(1)
            for name, tensor in weights.items()
        }
    save_checkpoint(run.checkpoint("federated"), weights, 1)
    return run


def table(
    path: Path, patients: int, seed: int, *, shift: float = 0.0, missing: int = 0, target: bool = False
) -> Path:
    """Write a table of patients, of whom the first few lack a sex; `shift` is of x, in its deviations."""
    generator = np.random.default_rng(seed)
    lines = ["patient,x,sex,ill,split" if target else "patient,x,sex"]
    for number in range(patients):
        x, sex = generator.normal(shift), "" if number < missing else "fm"[int(generator.integers(2))]
        rest = f",{int(generator.random() < 1 / (1 + np.exp(-2 * x)))},{SPLITS[number % 4]}" if target else ""
        lines.append(f"p{seed}-{number},{x:.6f},{sex}{rest}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


SPLITS = ("train", "val", "test", "test")


def images(
    folder: Path,
    patients: int,
    seed: int,
    *,
    gamma: float = 1.0,
    noise: float = 0.0,
    spoiled: Sequence[int] = (),
) -> Path:
    """Write a hospital's images, without labels: smooth tissue from 0 to 1000 with some noise."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    lines = ["case,patient,image"]
    ramp = np.linspace(0, 1, SIDE**3).reshape((SIDE,) * 3)
    for number in range(patients):
        tissue = ramp ** (gamma * generator.uniform(0.9, 1.1))
        image = (
            1000 * (tissue + generator.normal(0, 0.01 + noise, tissue.shape)) * generator.uniform(0.9, 1.1)
        )
        path = folder / f"c{seed}-{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0])), path)
        if number in spoiled:
            path.write_bytes(path.read_bytes()[:60])
        lines.append(f"c{seed}-{number},p{seed}-{number},{path.name}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder
