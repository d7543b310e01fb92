"""Run folders of tiny models with random weights, which are exported."""

from __future__ import annotations

from pathlib import Path

import torch

from medfed.pipeline.create_run import create_run
from medfed.pipeline.factory import module_of
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_study
from medfed.wire.weights import weights_of

CONFIGS = Path(__file__).parents[3] / "configs"
SEGMENT = """\
name: tiny
task: {kind: segment, classes: [background, lesion], mirror: [x, z]}
network: {kind: unet, channels: [4, 8], residual_units: 1}
data: {kind: images, spacing_mm: [1.5, 2, 2.5], patch: [12, 12, 12], orientation: PIR}
train: {rounds: 1}
sites: {north: north}
"""
CLASSIFY = """\
name: tiny-classifier
task: {kind: classify, classes: [healthy, lesion]}
network: {kind: resnet, depth: 10, width: 4, norm: group}
data: {kind: images, spacing_mm: [3, 4, 4], patch: [15, 20, 40], orientation: PIR}
train: {rounds: 1}
sites: {north: north}
"""


def run_of(folder: Path, config: Path) -> RunFolder:
    study = read_study(config)
    run = RunFolder(folder)
    create_run(run, study, {})
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: value + 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in weights_of(module_of(study)).items()
    }
    save_checkpoint(run.checkpoint("federated"), weights, 1)
    return run
