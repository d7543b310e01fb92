"""Training part of a network: selected layers or low-rank adapters, starting from a checkpoint
if there is one.

LoRA: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, ICLR 2022, arXiv:2106.09685: a layer's
weight becomes W + alpha / r B A, where W is frozen, A (r rows) starts random and B at zero, so that
the network starts unchanged.
Departure: a convolution's weight (out, in, x, y, z) is treated as a matrix of `out` rows; the
paper adapts linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from medfed.errors import StudyError

if TYPE_CHECKING:
    from torch import Tensor, nn


class LoRASettings(Protocol):
    """The adapter settings of a study."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...


def prepare_training(
    network: nn.Module, start: str | None, lora: LoRASettings | None, only: Sequence[str]
) -> None:
    """Load the weights that a study starts from, and freeze what it does not train; by
    default nothing is frozen.

    Raises:
        StudyError: if the checkpoint is of another network, a named part is missing, or no layer is large.
    """
    if start is not None:
        load_checkpoint(network, Path(start))
    if lora is not None:
        add_lora(network, lora.rank, lora.alpha)
        unfreeze(network, only)
    elif only:
        network.requires_grad_(False)
        unfreeze(network, only)


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Load a medfed checkpoint into a network.

    Raises:
        StudyError: if the file is no checkpoint or a damaged one, or naming a tensor that is missing or has
            another shape.
    """
    saved = {name.removeprefix("network."): tensor for name, tensor in _read_tensors(path).items()}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and (name not in saved or saved[name].shape != tensor.shape):
            problem = f"has shape {tuple(saved[name].shape)}" if name in saved else "is missing"
            raise StudyError(
                f"start: {path.name} is of another network: '{name}' {problem}, this study's "
                f"network has {tuple(tensor.shape)}"
            )
    # A checkpoint has no integer buffers (batch norm's counter); they stay as built.
    network.load_state_dict(saved, strict=False)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the checkpoint that a study starts from.

    Raises:
        StudyError: if it cannot be read, or holds something else.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - torch raises EOFError, RuntimeError, UnpicklingError and more
        raise StudyError(
            f"start: {path.name} cannot be read as a checkpoint; it is damaged, cut short or of another "
            "format; copy it again, or give a run's checkpoints/federated.ckpt"
        ) from None
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(one, torch.Tensor) for one in tensors.values()):
        raise StudyError(
            f"start: {path.name} is no checkpoint of a run: it has no tensors under 'state_dict'; give a "
            "run's checkpoints/federated.ckpt"
        )
    return tensors


def add_lora(network: nn.Module, rank: int, alpha: float) -> None:
    """Add a low-rank adapter to every linear and convolutional layer, and freeze the original parameters.

    A layer gets no adapter if the two thin matrices would be as large as the layer itself;
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

    network.requires_grad_(False)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    adapted = 0
    for layer in [module for module in network.modules() if isinstance(module, kinds)]:
        rows, columns = layer.weight.shape[0], layer.weight[0].numel()
        if (rows + columns) * rank < rows * columns:
            parametrize.register_parametrization(layer, "weight", Adapter(layer.weight))
            adapted += 1
    if not adapted:
        raise StudyError(
            f"train.lora: rank {rank}: no layer of this network is large enough for a smaller adapter; take "
            "a lower rank, or train the whole network"
        )


def unfreeze(network: nn.Module, names: Sequence[str]) -> None:
    """Make the layers in submodules of these names trainable.

    Raises:
        StudyError: naming an entry that is not a submodule, and the nearest ones.
    """
    import difflib

    parts = {part for prefix, _ in network.named_modules() for part in prefix.split(".") if part}
    for name in names:
        if name not in parts:
            nearest = difflib.get_close_matches(name, sorted(parts), n=3, cutoff=0.3)
            raise StudyError(
                f"train.only: the network has no part '{name}'"
                + (f"; there are {', '.join(nearest)}" if nearest else "")
            )
    for prefix, module in network.named_modules():
        if set(names) & set(prefix.split(".")):
            module.requires_grad_(True)
