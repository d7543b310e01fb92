"""timm's image classifiers: what is built is timm's own, from its files, and nothing is downloaded."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from medfed.errors import StudyError
from medfed.models.networks.timm import Timm
from medfed.models.pretrained import Start
from medfed.models.pretrained.load import load_start

try:
    import timm
except (ImportError, RuntimeError):  # torchvision's operators do not load beside another build of torch
    timm = None

torch.set_num_threads(1)
needs_timm = pytest.mark.skipif(
    timm is None, reason="needs medfed[timm] and a torchvision that is built for the installed torch"
)

# One of each kind: convolutions, an inverted bottleneck, depthwise stages, and position embeddings.
NAMES = ("resnet18", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224")


@needs_timm
@pytest.mark.parametrize("name", NAMES)
def test_a_published_file_gives_timms_own_answer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file as models are published is loaded whole, and rows and columns are where they were learnt."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    size = (64, 96)  # X and Y: columns and rows
    sized: dict[str, Any] = {"img_size": (96, 64)} if "vit" in name else {}
    model = timm.create_model(name, pretrained=False, in_chans=3, num_classes=2, **sized).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(socket.socket, "connect", None)  # nothing may be downloaded
    network = Timm(name=name)
    built = network.build(3, 2, size).eval()
    loaded = load_start(built, Start(path=str(tmp_path / "model.safetensors")), network.head)
    assert loaded.share == 1
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert torch.equal(built(image), model(image.transpose(2, 3)))


@needs_timm
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_from_grey_images(name: str) -> None:
    torch.manual_seed(0)
    network = Timm(name=name, arguments={"drop_rate": 0.1})
    built = network.build(1, 3, (64, 96))
    answer = built(torch.randn(2, 1, 64, 96))
    assert answer.shape == (2, 3)
    answer.square().sum().backward()
    assert [key for key, one in built.named_parameters() if one.grad is None] == []
    assert built.get_submodule(network.head).out_features == 3


@needs_timm
@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet81", (64, 64), r"'resnet81' is not a model of timm .*did you mean 'resnet\d+"),
        ("hf_hub:someone/model", (64, 64), "'hf_hub:someone/model' is not a model of timm"),
        ("deit_tiny_distilled_patch16_224", (224, 224), "has no single last layer"),
        ("vit_tiny_patch16_224", (60, 64), "its sides must be a multiple of 16, such as 48 x 64 or 64 x 64"),
        ("resnet18", (16, 32), "each side must be at least 32"),
        ("vit_tiny_patch16_224", None, "set data.patch in the study"),
    ],
)
def test_a_model_or_size_that_does_not_fit_is_refused(name: str, size: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        Timm(name=name).build(1, 2, size)


@pytest.mark.parametrize(
    ("arguments", "size", "message"),
    [
        ({"pretrained": True}, (64, 64), "'pretrained' is no argument of resnet18 that may be given"),
        ({"checkpoint_path": "/x"}, (64, 64), "'checkpoint_path' is no argument of resnet18"),
        ({"drop_rate": 1.0}, (64, 64), "drop_rate of resnet18 must be a number from 0 to 0.9"),
        ({"global_pool": "__import__"}, (64, 64), "global_pool of resnet18 must be avg or max"),
        ({}, (64, 64, 64), "has 3 sides, the network has spatial_dims: 2"),
    ],
)
def test_what_is_refused_as_a_study_is_read(arguments: dict[str, Any], size: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        Timm(arguments=arguments).check_size(size)


@pytest.mark.skipif(timm is not None, reason="here timm loads")
def test_a_package_that_does_not_load_is_named() -> None:
    with pytest.raises(
        StudyError, match="needs timm and a torchvision that is built for the installed torch"
    ):
        Timm().build(1, 2, (64, 64))
