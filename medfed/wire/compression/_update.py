"""Compression of an update in the hospital, after its privacy mechanism, and its reversal at the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from medfed.errors import UpdateError, WireError
from medfed.wire.compression._compression import Compression, State, count_elements, header_shapes
from medfed.wire.compression._stack import compress, decompress
from medfed.wire.update import Encoded, Update
from medfed.wire.weights import Weights


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
        raise UpdateError(f"{_describe(update)}: {error}") from None
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
                f"{_describe(update)} is not compressed, but the study compresses; do site and hub run the "
                f"same study?"
            )
        return update
    if not stages:
        raise UpdateError(
            f"{_describe(update)} is compressed, but the study names no compression; do site and hub run the "
            f"same study?"
        )
    if update.delta:
        raise UpdateError(f"{_describe(update)} holds a compressed delta and a plain one; it may hold one")
    try:
        _check_claimed_sizes(update.encoded, sum(tensor.numel() for tensor in weights.values()))
        return replace(update, delta=decompress(stages, update.encoded), encoded=None)
    except WireError as error:
        raise UpdateError(f"{_describe(update)}: {error}") from None


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


def _describe(update: Update) -> str:
    return f"update of site '{update.site}' for round {update.round}"
