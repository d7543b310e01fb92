from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from medfed.errors import RunError
from medfed.runs.checkpoints import load_checkpoint, load_or_train, save_checkpoint

WEIGHTS = {"layer.weight": torch.tensor([[1.0, 2.0]]), "layer.bias": torch.tensor([3.0], dtype=torch.float16)}


def test_plain_torch_and_lightning_read_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "federated.ckpt"
    save_checkpoint(path, WEIGHTS, 4)
    content = torch.load(path, weights_only=True)
    assert (content["epoch"], content["global_step"]) == (4, 4)
    assert "pytorch-lightning_version" in content
    loaded = load_checkpoint(path)
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {n: t.dtype for n, t in WEIGHTS.items()}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in WEIGHTS.items())


def test_a_model_is_trained_once(tmp_path: Path) -> None:
    path, calls = tmp_path / "local-north.ckpt", []

    def train() -> dict[str, torch.Tensor]:
        calls.append("trained")
        return WEIGHTS

    for _ in range(2):
        assert torch.equal(load_or_train(path, 1, train)["layer.bias"], WEIGHTS["layer.bias"])
    assert calls == ["trained"]


@pytest.mark.parametrize("kept_bytes", [0, 100])
def test_a_checkpoint_cut_short_is_refused_with_its_name(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "local-north.ckpt"
    save_checkpoint(path, WEIGHTS, 4)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(RunError, match=r"^local-north\.ckpt: this checkpoint is missing or damaged; copy"):
        load_checkpoint(path)


def test_a_model_that_the_disk_does_not_take_is_a_message(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # the operating system refuses the 65th byte
    try:
        with pytest.raises(
            RunError, match=r"^federated\.ckpt: the model cannot be written .* are free in the run folder"
        ):
            save_checkpoint(tmp_path / "federated.ckpt", WEIGHTS, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
