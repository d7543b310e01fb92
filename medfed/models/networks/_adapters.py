"""Training a part of a network: the layers that a study names, or low-rank adapters of all its
layers, and where from.

LoRA: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, ICLR 2022, arXiv:2106.09685: a layer's weight
becomes W + alpha / r B A, where W stays as it is, A (r rows) begins random and B at zero, so that the
network begins as it was.
Departure: a convolution's weight (out, in, x, y, z) is taken as the matrix of `out` rows; the
paper adapts linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from medfed.errors import StudyError

if TYPE_CHECKING:
    from torch import nn


class LoRASettings(Protocol):
    """What a study says of adapters."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...


def prepare_training(
    network: nn.Module, start: str | None, lora: LoRASettings | None, only: Sequence[str]
) -> None:
    """Load the weights that a study begins with, and leave trainable what it trains: all,
    if it names nothing.

    Raises:
        StudyError: if the checkpoint is of another network, a part is not in this one, or no adapter would be small.
    """
    if start is not None:
        load_checkpoint(network, Path(start))
    if lora is not None:
        add_lora(network, lora.rank, lora.alpha)
        unfreeze(network, only)
    elif only:
        train_only(network, only)


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Load a checkpoint of medfed into a network.

    Raises:
        StudyError: naming a tensor that is missing or has another shape.
    """
    import torch

    found = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    held = {name.removeprefix("network."): tensor for name, tensor in found.items()}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and (name not in held or held[name].shape != tensor.shape):
            there = f"has shape {tuple(held[name].shape)}" if name in held else "is not in it"
            raise StudyError(
                f"start: {path.name} is of another network: '{name}' {there}, this study's has {tuple(tensor.shape)}"
            )
    # A checkpoint has no integer buffers (batch norm's counter); those stay as built.
    network.load_state_dict(held, strict=False)


def add_lora(network: nn.Module, rank: int, alpha: float) -> None:
    """Give every linear and convolutional layer a low-rank adapter, and freeze all that was there.

    A layer whose two thin matrices would hold as many numbers as the layer itself has none;
    it stays frozen, too.

    Raises:
        StudyError: if no layer is large enough for an adapter of this rank.
    """
    import torch
    from torch import nn
    from torch.nn.utils import parametrize

    class Adapter(nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            rows, columns = weight.shape[0], weight[0].numel()
            self.a = nn.Parameter(torch.empty(rank, columns))
            self.b = nn.Parameter(torch.zeros(rows, rank))
            nn.init.kaiming_uniform_(self.a, a=5**0.5)  # as nn.Linear, and as the authors' code

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + (alpha / rank) * (self.b @ self.a).view_as(weight)

    for parameter in network.parameters():
        parameter.requires_grad_(False)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    adapted = 0
    for layer in [module for module in network.modules() if isinstance(module, kinds)]:
        rows, columns = layer.weight.shape[0], layer.weight[0].numel()
        if (rows + columns) * rank < rows * columns:
            parametrize.register_parametrization(layer, "weight", Adapter(layer.weight))
            adapted += 1
    if not adapted:
        raise StudyError(
            f"train.lora: rank {rank}: no layer of this network is so large that an adapter would be smaller; take a "
            f"lower rank, or train the network whole"
        )


def unfreeze(network: nn.Module, names: Sequence[str]) -> None:
    """Let the layers below submodules of these names be trained.

    Raises:
        StudyError: naming an entry that is no submodule, and the nearest.
    """
    import difflib

    parts = {part for prefix, _ in network.named_modules() for part in prefix.split(".") if part}
    for name in names:
        if name not in parts:
            near = difflib.get_close_matches(name, sorted(parts), n=3, cutoff=0.3)
            raise StudyError(
                f"train.only: the network has no part '{name}'{'; there are ' + ', '.join(near) if near else ''}"
            )
    for prefix, module in network.named_modules():
        if set(names) & set(prefix.split(".")):
            for parameter in module.parameters():
                parameter.requires_grad_(True)


def train_only(network: nn.Module, names: Sequence[str]) -> None:
    """Freeze all but the layers below submodules of these names."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    unfreeze(network, names)
