"""Several compressions in turn, with error feedback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medfed.errors import WireError
from medfed.wire.compression._compression import Compression, State
from medfed.wire.update import Encoded
from medfed.wire.weights import Weights, is_running_statistic

# The state's group for the accumulated rounding error.
ERROR = "error"

# The group of tensors that are sent uncompressed.
UNCOMPRESSED = "exact"


def compress(stages: Sequence[Compression], delta: Weights, state: State) -> tuple[Encoded, State]:
    """Return a delta in fewer bytes, and the state with the rounding error; the first round's state is empty.

    Each stage shortens the floats of the chainable groups of the one before. Batch norm's running statistics
    are sent uncompressed: they are few, and a rounded step could make a variance negative.

    Raises:
        UpdateError: naming a tensor with values that are not finite.
    """
    errors = state.get(ERROR, {})
    exact = {name: tensor.clone() for name, tensor in delta.items() if is_running_statistic(name)}
    lossy = {name: _add_error(delta[name], errors.get(name)) for name in delta if name not in exact}
    groups, tree, new_state = _encode(list(stages), lossy, "", state)
    groups[UNCOMPRESSED] = exact
    encoded = Encoded(groups, {"stages": tree, "exact": sorted(exact)})
    received = decompress(stages, encoded)
    # Float64 would be exact where float32 rounds, at twice the memory; this loses 1e-7 of the error.
    new_errors = {name: (tensor - received[name].double()).float() for name, tensor in lossy.items()}
    return encoded, {**new_state, ERROR: new_errors}


def _add_error(tensor: Tensor, error: Tensor | None) -> Tensor:
    total = tensor.detach().to(torch.float64, copy=True)
    return total if error is None else total.add_(error)


def decompress(stages: Sequence[Compression], encoded: Encoded) -> dict[str, Tensor]:
    """Return the delta as the hub merges it: float32, and running statistics exactly as sent.

    Raises:
        WireError: if it was not compressed by these stages.
    """
    tree = encoded.header.get("stages")
    if not isinstance(tree, dict):
        raise WireError("a compressed update's header has no stages; do site and hub run the same study?")
    return {**_decode(list(stages), encoded.groups, "", tree), **encoded.groups.get(UNCOMPRESSED, {})}


def _encode(
    stages: list[Compression], tensors: Weights, path: str, state: State
) -> tuple[dict[str, Weights], dict[str, Any], dict[str, Weights]]:
    """Return the groups by path, the tree of headers, and the stages' own state by path."""
    if not stages:
        return {path + "plain": {name: t.float() for name, t in tensors.items()}}, {}, {}
    first, rest = stages[0], stages[1:]
    own_state = {key.removeprefix(path): group for key, group in state.items() if key.startswith(path)}
    encoded, new_state = first.encode(tensors, own_state)
    groups: dict[str, Weights] = {}
    states: dict[str, Weights] = {path + key: group for key, group in new_state.items()}
    inner: dict[str, Any] = {}
    for name, group in encoded.groups.items():
        if rest and name in first.chainable:
            inner_groups, inner[name], inner_states = _encode(rest, group, f"{path}{name}.", state)
            groups.update(inner_groups)
            states.update(inner_states)
        else:
            groups[path + name] = group
    return groups, {"header": dict(encoded.header), "inner": inner}, states


def _decode(
    stages: list[Compression], groups: Mapping[str, Weights], path: str, tree: Mapping[str, Any]
) -> dict[str, Tensor]:
    if not stages:
        return dict(groups.get(path + "plain", {}))
    first, rest = stages[0], stages[1:]
    header, inner = tree.get("header"), tree.get("inner")
    if not isinstance(header, dict) or not isinstance(inner, dict):
        raise WireError("a compressed update's header is damaged; do site and hub run the same study?")
    own_groups: dict[str, Weights] = {}
    for key, group in groups.items():
        name = key.removeprefix(path)
        if key.startswith(path) and "." not in name and name not in inner:
            own_groups[name] = group
    for name, subtree in inner.items():
        if name not in first.chainable or not isinstance(subtree, dict):
            raise WireError(
                f"a compressed update says that its group '{name}' was compressed again; it can't be"
            )
        own_groups[name] = _decode(rest, groups, f"{path}{name}.", subtree)
    return first.decode(Encoded(own_groups, header))
