"""Training part of a network: selected layers or low-rank adapters, starting from given weights if there are.

LoRA: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, ICLR 2022, arXiv:2106.09685: a layer's weight becomes
W + alpha / r B A, where W is frozen, A (r rows) starts random and B at zero, so that the network starts
unchanged. Departure: a convolution's weight (out, in, x, y, z) is treated as a matrix of `out` rows; the
paper adapts linear layers. It is implemented here as a parametrisation, not taken from the package peft: that
wraps layers under other names, needs transformers, and adapts no transposed convolution.

Federated: the mean of the hospitals' B times the mean of their A is not the mean of their B A. FFA-LoRA (Sun,
Li, Li, Ding, ICLR 2024, arXiv:2403.12313) keeps A as it was drawn, so that the mean of B gives the mean of
the layers exactly, with half the numbers to send; it is the default. A is drawn from the seed and the layer's
name by a generator of its own: equal at every hospital, whatever the network drew before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from medfed.errors import StudyError

if TYPE_CHECKING:
    from torch import nn

    from medfed.models.pretrained import Start
    from medfed.models.pretrained.load import LoadedStart

# What `only` and `also` call all norms and the last layer.
NORM, HEAD = "norm", "head"


class LoRASettings(Protocol):
    """The adapter settings of a study."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def matrices(self) -> Literal["b", "ab"]: ...
    @property
    def also(self) -> tuple[str, ...]: ...


def prepare_training(
    network: nn.Module,
    start: Start | None,
    lora: LoRASettings | None,
    only: Sequence[str],
    head: str = "",
) -> LoadedStart | None:
    """Load the weights that a study starts from, freeze what it does not train, and return what was loaded.

    By default nothing is frozen. `head` is the path of the network's last layer.

    Raises:
        StudyError: if the file cannot be used, a named part is missing, no layer is large enough, or a layer
            that the file does not have would be frozen with random weights.
    """
    loaded = None
    if start is not None:
        from medfed.models.pretrained.load import load_start

        loaded = load_start(network, start, head)
    if lora is not None:
        add_lora(network, lora, (*only, *lora.also), head)
    elif only:
        network.requires_grad_(False)
        unfreeze(network, _with_head(network, only, head))
    if loaded is not None and (lora is not None or only):
        _refuse_frozen_at_random(network, loaded.anew)
    return loaded


def add_lora(network: nn.Module, lora: LoRASettings, whole: Sequence[str] = (), head: str = "") -> None:
    """Add an adapter to linear and convolutional layers, and freeze all but adapters and the parts `whole`.

    A layer gets no adapter if it trains whole, or if the two thin matrices would be as large as itself; then
    it stays frozen.

    Raises:
        StudyError: if no layer is large enough for an adapter of this rank, or a part is missing.
    """
    from torch import nn
    from torch.nn.utils import parametrize

    from medfed.models.networks._low_rank import LowRank

    network.requires_grad_(False)
    unfreeze(network, [head if part == HEAD else part for part in whole if part != HEAD or head])
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    adapted = 0
    for name, layer in [(name, one) for name, one in network.named_modules() if isinstance(one, kinds)]:
        rows, columns = layer.weight.shape[0], layer.weight[0].numel()
        if not layer.weight.requires_grad and (rows + columns) * lora.rank < rows * columns:
            adapter = LowRank(layer.weight, lora.rank, lora.alpha, _seed(name), both=lora.matrices == "ab")
            parametrize.register_parametrization(layer, "weight", adapter)
            adapted += 1
    if not adapted:
        raise StudyError(
            f"train.lora: rank {lora.rank}: no layer of this network is large enough for a smaller adapter; "
            "take a lower rank, or train the whole network"
        )


def _with_head(network: nn.Module, parts: Sequence[str], head: str) -> list[str]:
    """Return parts with the path of the last layer for `head`, unless the network has a part of that name."""
    own = any(_is_in(HEAD, path) for path, _ in network.named_modules())
    return [head if part == HEAD and head and not own else part for part in parts]


def _seed(layer: str) -> int:
    """Return the seed of a layer's A: of its name and the seed that the network is built from."""
    import torch

    text = f"{torch.initial_seed()}/{layer}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")


def merge_adapters(network: nn.Module) -> nn.Module:
    """Write each adapter into its layer's weight, so that the network is a plain one again; return it."""
    from torch import nn
    from torch.nn.utils import parametrize

    from medfed.models.networks._low_rank import LowRank

    for layer in list(network.modules()):
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        parametrizations = layer.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        if any(isinstance(one, LowRank) for one in parametrizations["weight"].children()):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return network


def unfreeze(network: nn.Module, names: Sequence[str]) -> None:
    """Make the layers in submodules of these names or paths trainable; `norm` stands for all norms.

    Raises:
        StudyError: naming an entry that is not a submodule, and the nearest ones.
    """
    import difflib

    from torch import nn

    paths = [prefix for prefix, _ in network.named_modules()]
    parts = {part for prefix in paths for part in prefix.split(".") if part}
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    for name in names:
        if name != NORM and not any(_is_in(name, prefix) for prefix in paths):
            nearest = difflib.get_close_matches(name, sorted(parts), n=3, cutoff=0.3)
            raise StudyError(
                f"train.only: the network has no part '{name}'"
                + (f"; there are {', '.join(nearest)}" if nearest else "")
            )
    for prefix, module in network.named_modules():
        if any(_is_in(name, prefix) for name in names) or (NORM in names and isinstance(module, norms)):
            module.requires_grad_(True)


def _is_in(part: str, path: str) -> bool:
    """Whether a path leads to a part of this name or path, or into it."""
    return f".{part}." in f".{path}."


def _refuse_frozen_at_random(network: nn.Module, anew: Iterable[str]) -> None:
    """Refuse a layer that neither the start nor training gives its weights: it would pass on noise."""
    parameters = dict(network.named_parameters())
    for name in anew:
        layer, _, last = name.rpartition(".")
        found = parameters.get(name, parameters.get(f"{layer}.parametrizations.{last}.original"))
        if found is not None and not found.requires_grad:
            raise StudyError(
                f"start: the file has nothing for '{name}', which this study does not train either, so "
                "that it would stay random; name a part that holds it in train.only, such as "
                f"[{name.split('.')[0]}]"
            )
