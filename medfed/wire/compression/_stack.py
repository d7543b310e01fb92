"""Several compressions in turn, with error feedback: after the privacy mechanism, and reversed at the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medfed.errors import UpdateError, WireError
from medfed.wire.compression._compression import Compression, State, count_elements, header_shapes
from medfed.wire.update import Encoded, Update
from medfed.wire.weights import Weights, is_running_statistic

# The state's group for the accumulated rounding error.
ERROR = "error"

# The group of tensors that are sent uncompressed.
UNCOMPRESSED = "exact"


def compress_update(stages: Sequence[Compression], update: Update, state: State) -> tuple[Update, State]:
    """Return the update with its delta compressed, and this round's rounding error for the next round.

    Groups (a control variate) and scalars are sent unchanged. Without stages or without a delta, the update
    is returned as it is.

    Raises:
        UpdateError: naming site, round and tensor, if a value does not fit float32.
    """
    if not stages or update.evaluation_only:
        return update, state
    try:
        encoded, new_state = compress(stages, update.delta, state)
    except UpdateError as error:
        raise UpdateError(f"{update}: {error}") from None
    return replace(update, delta={}, encoded=encoded), new_state


def decompress_update(stages: Sequence[Compression], update: Update, weights: Weights) -> Update:
    """Return the update with its decompressed delta (float32), as the rule merges it.

    The sizes that a header claims are compared with the model before anything is decoded, so
    that a site cannot make the hub reserve more memory than a model takes. The delta itself is
    checked by `check_update` afterwards.

    Raises:
        UpdateError: naming site and round, if this is not what the study's stages make of this model.
    """
    if update.encoded is None:
        if stages and not update.evaluation_only:
            raise UpdateError(
                f"{update} is not compressed, but the study compresses; do site and hub run the same study?"
            )
        return update
    if not stages:
        raise UpdateError(
            f"{update} is compressed, but the study names no compression; do site and hub run the same study?"
        )
    if update.delta:
        raise UpdateError(f"{update} holds a compressed delta and a plain one; it may hold one")
    try:
        _check_claimed_sizes(update.encoded, sum(tensor.numel() for tensor in weights.values()))
        return replace(update, delta=decompress(stages, update.encoded), encoded=None)
    except WireError as error:
        raise UpdateError(f"{update}: {error}") from None


def _check_claimed_sizes(encoded: Encoded, max_values: int) -> None:
    """Check that no stage's header claims more values than the model has.

    Raises:
        WireError: if one does, or is damaged.
    """
    trees: list[Any] = [encoded.header.get("stages")]
    while trees:
        tree = trees.pop()
        if not isinstance(tree, Mapping):
            continue  # `decompress` reports what is wrong with it
        header, inner = tree.get("header"), tree.get("inner")
        if isinstance(header, Mapping) and header:
            shapes = header_shapes(Encoded({}, header)).values()
            claimed = sum(count_elements(shape) for shape in shapes)
            if claimed > max_values:
                raise WireError(f"its header claims {claimed} values, the global model has {max_values}")
        if isinstance(inner, Mapping):
            trees += inner.values()


# -- the stages


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
