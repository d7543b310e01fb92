"""Compressions one after the other, with the error fed back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medfed.errors import WireError
from medfed.wire.compression._compression import Compression, Encoded, State
from medfed.wire.weights import Weights, is_running_statistic

# The state's group for what rounding left out so far.
ERROR = "error"

# The group for tensors that are sent as they are.
UNCOMPRESSED = "exact"


def compress(stages: Sequence[Compression], delta: Weights, state: State) -> tuple[Encoded, State]:
    """Return a delta in fewer bytes, and the state with what this left out; the first round's state is empty.

    Each stage shortens the floats that the one before it passes on. Batch norm's running statistics go as
    they are: they are few, and a rounded step could carry a variance below zero.

    Raises:
        UpdateError: naming a tensor with values that are not finite.
    """
    before = state.get(ERROR, {})
    exact = {name: tensor.clone() for name, tensor in delta.items() if is_running_statistic(name)}
    lossy = {name: _plus(delta[name], before.get(name)) for name in delta if name not in exact}
    groups, tree, after = _encode(list(stages), lossy, "", state)
    groups[UNCOMPRESSED] = exact
    encoded = Encoded(groups, {"stages": tree, "exact": sorted(exact)})
    said = restore(stages, encoded)
    # Float64 would be exact where float32 rounds, at twice the memory; what is lost here is 1e-7 of the
    # error.
    error = {name: (tensor - said[name].double()).float() for name, tensor in lossy.items()}
    return encoded, {**after, ERROR: error}


def _plus(tensor: Tensor, error: Tensor | None) -> Tensor:
    summed = tensor.detach().to(torch.float64, copy=True)
    return summed if error is None else summed.add_(error)


def restore(stages: Sequence[Compression], encoded: Encoded) -> dict[str, Tensor]:
    """Return the delta that was sent, as the hub merges it: float32, and running statistics exactly.

    Raises:
        WireError: if this was not made by these stages.
    """
    tree = encoded.header.get("stages")
    if not isinstance(tree, dict):
        raise WireError("a compressed update's header says no stages; do site and hub run the same study?")
    return {**_decode(list(stages), encoded.groups, "", tree), **encoded.groups.get(UNCOMPRESSED, {})}


def _encode(
    stages: list[Compression], tensors: Weights, at: str, state: State
) -> tuple[dict[str, Weights], dict[str, Any], dict[str, Weights]]:
    """Return the groups by path, the tree of headers, and the stages' own state by path."""
    if not stages:
        return {at + "plain": {name: t.float() for name, t in tensors.items()}}, {}, {}
    first, rest = stages[0], stages[1:]
    own = {key.removeprefix(at): group for key, group in state.items() if key.startswith(at)}
    encoded, after = first.encode(tensors, own)
    groups: dict[str, Weights] = {}
    kept: dict[str, Weights] = {at + key: group for key, group in after.items()}
    inner: dict[str, Any] = {}
    for group, held in encoded.groups.items():
        if rest and group in first.chainable:
            below, inner[group], deeper = _encode(rest, held, f"{at}{group}.", state)
            groups.update(below)
            kept.update(deeper)
        else:
            groups[at + group] = held
    return groups, {"header": dict(encoded.header), "inner": inner}, kept


def _decode(
    stages: list[Compression], groups: Mapping[str, Weights], at: str, tree: Mapping[str, Any]
) -> dict[str, Tensor]:
    if not stages:
        return dict(groups.get(at + "plain", {}))
    first, rest = stages[0], stages[1:]
    header, inner = tree.get("header"), tree.get("inner")
    if not isinstance(header, dict) or not isinstance(inner, dict):
        raise WireError("a compressed update's header is damaged; do site and hub run the same study?")
    held: dict[str, Weights] = {}
    for key, group in groups.items():
        name = key.removeprefix(at)
        if key.startswith(at) and "." not in name and name not in inner:
            held[name] = group
    for name, below in inner.items():
        if name not in first.chainable or not isinstance(below, dict):
            raise WireError(
                f"a compressed update says that its group '{name}' was compressed again; it can't be"
            )
        held[name] = _decode(rest, groups, f"{at}{name}.", below)
    return first.decode(Encoded(held, header))
