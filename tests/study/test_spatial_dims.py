"""A study's network has as many axes as its images."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from medfed.errors import StudyError
from medfed.models.networks import Network
from medfed.pipeline.factory import module_of, network_of
from medfed.registry import kinds
from medfed.study.reading import parse_study

torch.set_num_threads(1)

STUDY = """\
name: planes
task: {{kind: {task}, classes: [a, b]}}
network: {network}
data: {{kind: images, spatial_dims: 2, spacing_mm: fit, patch: [64, 64], channels: 3}}
train: {{rounds: 1}}
sites: {{north: north}}
"""


def image_networks() -> list[tuple[str, str]]:
    return [
        (name, need)
        for name, kind in sorted(kinds("networks").items())
        if issubclass(kind, Network) and all(map(find_spec, kind.packages))
        for need in kind.serves
        if need in ("segment", "classify")
    ]


@pytest.mark.parametrize(("network", "task"), image_networks())
def test_every_network_takes_its_axes_from_the_data(network: str, task: str) -> None:
    study = parse_study(STUDY.format(task=task, network=f"{{kind: {network}}}"))
    with torch.inference_mode():
        outputs = network_of(study).eval()(torch.zeros(1, 3, 64, 64))
    assert tuple(outputs.shape) == ((1, 2, 64, 64) if task == "segment" else (1, 2))


def test_the_module_knows_its_axes() -> None:
    text = STUDY.format(task="segment", network="{kind: unet, channels: [4, 8]}")
    assert module_of(parse_study(text)).windows.spatial_dims == 2


def test_another_number_of_axes_is_refused_when_the_study_is_read() -> None:
    text = STUDY.format(task="classify", network="{kind: resnet, spatial_dims: 3}")
    with pytest.raises(StudyError, match=r"network\.spatial_dims: found 3, and data\.spatial_dims is 2"):
        parse_study(text)
    volumes = STUDY.format(task="classify", network="{kind: resnet, spatial_dims: 2}")
    volumes = volumes.replace("spatial_dims: 2, spacing_mm: fit, patch: [64, 64]", "patch: [64, 64, 64]")
    with pytest.raises(StudyError, match=r"network\.spatial_dims: found 2, and data\.spatial_dims is 3"):
        parse_study(volumes)


def test_slices_are_segmented_and_not_classified() -> None:
    text = STUDY.format(task="classify", network="{kind: resnet}")
    text = text.replace("spacing_mm: fit", "spacing_mm: [1, 1], slices: axial")
    with pytest.raises(StudyError, match=r"data\.slices: task 'classify' learns from whole images"):
        parse_study(text)


def test_numbers_of_volumes_are_refused_with_the_study_s_name() -> None:
    text = STUDY.format(task="classify", network="{kind: resnet}").replace("[64, 64]", "[64, 64, 64]")
    with pytest.raises(StudyError, match=r"data: patch has 3 numbers"):
        parse_study(text)
