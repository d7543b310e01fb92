"""Transformers' vision architectures: what is built is theirs, from their files, and nothing else."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from medfed.errors import StudyError
from medfed.models.networks._hugging_face_catalogue import ARCHITECTURES
from medfed.models.networks.hugging_face import HuggingFace
from medfed.models.pretrained import Start
from medfed.models.pretrained.load import load_start

transformers = pytest.importorskip("transformers", reason="needs medfed[huggingface]")
torch.set_num_threads(1)

_STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
_BLOCKS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_WINDOWS = {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}
_ATTENTION = {
    "attention.attention.key": "attention.k_proj",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
_MLP = {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
# Small settings of each architecture, a size (X, Y), and `start.names` for the names of published files.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, int], dict[str, str]]] = {
    "convnext": ({"hidden_sizes": [8, 16], "depths": [1, 1]}, (32, 48), {}),
    "convnextv2": ({"hidden_sizes": [8, 16], "depths": [1, 1]}, (32, 48), {}),
    "dinov2": ({**_BLOCKS, "mlp_ratio": 2, "image_size": 56}, (28, 42), _ATTENTION),
    "dinov2_with_registers": ({**_BLOCKS, "mlp_ratio": 2}, (32, 32), _ATTENTION),
    "regnet": ({**_STAGES, "groups_width": 8}, (32, 48), {}),
    "resnet": ({**_STAGES, "layer_type": "basic"}, (32, 48), {}),
    "swin": (
        _WINDOWS,
        (32, 64),
        {
            **{key.replace("attention.attention", "attention.self"): to for key, to in _ATTENTION.items()},
            "attention.self.relative_position_bias_table": (
                "attention.relative_position_bias.relative_position_bias_table"
            ),
            **_MLP,
        },
    ),
    "swinv2": (_WINDOWS, (32, 48), {}),
    "vit": (
        {**_BLOCKS, "intermediate_size": 24},
        (32, 48),
        {**_ATTENTION, "encoder.layer": "layers", **_MLP},
    ),
}


def own_model(name: str, inputs: int, outputs: int) -> Any:
    """Return the model as transformers' users build it."""
    arguments, (x, y), _ = SMALL[name]
    sized = {} if "image_size" in arguments or "dinov2" in name else {"image_size": (y, x)}
    stages = {"num_stages": 2} if name.startswith("convnext") else {}
    square = {"image_size": x} if name == "dinov2_with_registers" else {}
    config = transformers.AutoConfig.for_model(
        name, num_channels=inputs, num_labels=outputs,
        **{**sized, **square, **stages, **arguments},
    )  # fmt: skip
    return transformers.AutoModelForImageClassification.from_config(config).eval()


def test_every_architecture_is_tested() -> None:
    assert set(SMALL) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_published_file_gives_transformers_own_answer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file as models are published is loaded whole, and rows and columns are where they were learnt."""
    arguments, size, names = SMALL[name]
    torch.manual_seed(0)
    model = own_model(name, 3, 2)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", None)  # nothing may be downloaded
    network = HuggingFace(name=name, arguments=arguments)
    built = network.build(3, 2, size).eval()
    loaded = load_start(built, Start(path=str(tmp_path / "model.safetensors"), names=names), network.head)
    assert loaded.share == 1
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert torch.equal(built(image), model(image.transpose(2, 3)).logits)


@pytest.mark.parametrize(("name", "first"), [("dinov2", "patch_embeddings"), ("resnet", "embedder")])
def test_a_file_without_a_head_starts_a_network_for_grey_images(
    name: str, first: str, tmp_path: Path
) -> None:
    """As models without a task are published; the first layer and the head are new, all else is loaded."""
    arguments, size, names = SMALL[name]
    getattr(own_model(name, 3, 2), name).save_pretrained(tmp_path)
    network = HuggingFace(name=name, arguments=arguments)
    start = Start(path=str(tmp_path / "model.safetensors"), names=names, anew=("head", first))
    loaded = load_start(network.build(1, 2, size), start, network.head)
    assert all(f".{first}." in key or key.startswith(network.head) for key in loaded.anew)
    with pytest.raises(StudyError, match=r"has shape \(\d+, 3, \d+, \d+\), here \(\d+, 1, "):
        load_start(
            network.build(1, 2, size), Start(path=start.path, names=names, anew=("head",)), network.head
        )


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_parameter_learns_from_grey_images(name: str) -> None:
    arguments, size, _ = SMALL[name]
    network = HuggingFace(name=name, arguments=arguments)
    torch.manual_seed(0)
    built = network.build(1, 3, size)
    answer = built(torch.randn(2, 1, *size))
    assert answer.shape == (2, 3)
    answer.square().sum().backward()
    assert [key for key, one in built.named_parameters() if one.grad is None] == []
    assert built.get_submodule(network.head).out_features == 3


@pytest.mark.parametrize(
    ("name", "arguments", "size", "message"),
    [
        ("resnt", {}, (32, 32), "'resnt' is not an architecture of transformers .*did you mean 'resnet'"),
        ("vit", {"trust_remote_code": True}, (32, 32), "'trust_remote_code' is no argument of vit"),
        ("vit", {"image_size": 224}, (32, 32), "'image_size' is no argument of vit"),
        ("vit", {"num_labels": 2}, (32, 32), "'num_labels' is no argument of vit"),
        ("vit", {"num_hidden_layers": 10**6}, (32, 32), "must be a whole number from 1 to 128"),
        ("vit", {"hidden_dropout_prob": 1.0}, (32, 32), "must be a number from 0 to 0.9"),
        ("vit", {"hidden_act": "os.system"}, (32, 32), "hidden_act of vit must be gelu or relu or silu"),
        ("vit", {"hidden_size": 25}, (32, 32), "hidden: 25 is not a multiple of heads: 12"),
        ("swin", {"embed_dim": 100}, (224, 224), "hidden: 100 is not a multiple of heads: 3"),
        ("swin", {"window_size": 3.5}, (224, 224), "window_size of swin must be a whole number"),
        ("regnet", {"groups_width": 7}, (32, 32), "transformers cannot build regnet with these arguments"),
        ("vit", {}, (32, 40), "its sides must be a multiple of 16, such as 32 x 32 or 32 x 48"),
        ("vit", {}, None, "set data.patch in the study"),
        ("vit", {}, (32, 32, 32), "has 3 sides, the network has spatial_dims: 2"),
        ("convnext", {}, (48, 32), "its sides must be a multiple of 32"),
        ("swin", {}, (112, 112), "its sides must be a multiple of 224"),
        ("dinov2", {}, (28, 42), "dinov2 is made for square images"),
        ("resnet", {}, (16, 32), "each side must be at least 32"),
        ("resnet", {"depths": [1, 1], "hidden_sizes": [8]}, (32, 32), "hidden_sizes: 1, depths: 2"),
        ("convnext", {"depths": [1, 1]}, (32, 32), "hidden_sizes: 4, depths: 2 .4 are the default"),
    ],
)
def test_what_is_refused_as_a_study_is_read(
    name: str, arguments: dict[str, Any], size: Any, message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        HuggingFace(name=name, arguments=arguments).build(1, 2, size)
