"""An update's two ends: `pack` in the hospital, after its privacy mechanism, `unpack` at the
hub, before its check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from medfed.errors import UpdateError, WireError
from medfed.wire.compression._compression import Compression, State, elements, header_shapes
from medfed.wire.compression._stack import compress, restore
from medfed.wire.update import Encoded, Update
from medfed.wire.weights import Weights


def pack(stages: Sequence[Compression], update: Update, state: State) -> tuple[Update, State]:
    """Return the update with its delta in fewer bytes, and what this round's rounding left out for the next.

    Groups (a control variate) and scalars go as they are. Without a stage, and with no
    delta, nothing is changed.

    Raises:
        UpdateError: naming site, round and tensor, if a value does not fit float32.
    """
    if not stages or update.evaluation_only:
        return update, state
    try:
        encoded, after = compress(stages, update.delta, state)
    except UpdateError as error:
        raise UpdateError(f"{_who(update)}: {error}") from None
    return replace(update, delta={}, encoded=encoded), after


def unpack(stages: Sequence[Compression], update: Update, weights: Weights) -> Update:
    """Return the update with the delta that was said, float32, as the rule merges it.

    What a header claims is held against the model before anything is made of it, so that a site
    cannot make the hub reserve more memory than a model takes. The delta itself is checked as any
    other: by `update.check`, afterwards.

    Raises:
        UpdateError: naming site and round, if this is not what the study's stages make of this model.
    """
    if update.encoded is None:
        if stages and not update.evaluation_only:
            raise UpdateError(
                f"{_who(update)} is not compressed, but the study compresses; do site and hub run the same study?"
            )
        return update
    if not stages:
        raise UpdateError(
            f"{_who(update)} is compressed, but the study names no compression; do site and hub run the same study?"
        )
    if update.delta:
        raise UpdateError(f"{_who(update)} holds a compressed delta and a plain one; it may hold one")
    try:
        _fits(update.encoded, sum(tensor.numel() for tensor in weights.values()))
        return replace(update, delta=restore(stages, update.encoded), encoded=None)
    except WireError as error:
        raise UpdateError(f"{_who(update)}: {error}") from None


def _fits(encoded: Encoded, most: int) -> None:
    """Check that no stage's header claims more values than the model has.

    Raises:
        WireError: if one does, or is damaged.
    """
    trees: list[Any] = [encoded.header.get("stages")]
    while trees:
        tree = trees.pop()
        if not isinstance(tree, Mapping):
            continue  # `restore` says what is wrong with it
        header, inner = tree.get("header"), tree.get("inner")
        if isinstance(header, Mapping) and header:
            claimed = sum(elements(shape) for shape in header_shapes(Encoded({}, header)).values())
            if claimed > most:
                raise WireError(f"its header claims {claimed} values, the global model has {most}")
        if isinstance(inner, Mapping):
            trees += inner.values()


def _who(update: Update) -> str:
    return f"update of site '{update.site}' for round {update.round}"
