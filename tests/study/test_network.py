"""The network that a study describes: its inputs, outputs and axes, and the columns beside an image."""

from __future__ import annotations

import torch

from medfed.study.network import untrained_network
from medfed.study.reading import parse_study

IMAGES = """\
name: s
task: {kind: classify, classes: [a, b, c]}
network: {kind: resnet, width: 4, norm: group}
data: {kind: images, spatial_dims: 2, spacing_mm: fit, patch: [32, 32], channels: 3}
train: {rounds: 1}
sites: {north: n}
"""
COLUMNS = "channels: 3, table: {features: [age, sex], categorical: {sex: [F, M]}}"


def test_inputs_outputs_and_axes_are_the_studys() -> None:
    network = untrained_network(parse_study(IMAGES)).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_columns_beside_an_image_are_a_second_input() -> None:
    network = untrained_network(parse_study(IMAGES.replace("channels: 3", COLUMNS))).eval()
    with torch.inference_mode():
        # One number, and a column for each of two words.
        assert network(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3)).shape == (2, 3)


def test_initial_weights_are_drawn_from_torchs_random_state() -> None:
    study = parse_study(IMAGES)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(next(untrained_network(study).parameters()).detach().clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
