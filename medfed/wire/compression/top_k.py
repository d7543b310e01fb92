"""Top-k: the largest values of each tensor and where they are; the rest waits for another round.

Stich, Cordonnier, Jaggi: Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599; Aji, Heafield, EMNLP
2017, arXiv:1704.05021. Of equal magnitudes the first are sent, so that the choice is the same on every
machine. Departure: k is a share of each tensor and at least one value, where the paper's is of all weights
together; else a network's first layers, whose deltas are small, would not be heard for long.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from medfed.errors import WireError
from medfed.wire.compression._compression import (
    Compression,
    Encoded,
    Share,
    State,
    elements,
    finite,
    flat,
    header_shapes,
    part,
    tensor_shapes,
)
from medfed.wire.weights import Weights


class TopK(Compression, frozen=True, tag="top_k"):
    """The `share` of each tensor's values that is largest in magnitude, and where they are."""

    share: Share = 0.05

    chainable: ClassVar[tuple[str, ...]] = ("values",)

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        values: dict[str, Tensor] = {}
        places: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            held = flat(name, tensor)
            chosen = _largest(held, math.ceil(self.share * held.numel()))
            values[name] = held[chosen]
            places[name] = chosen.to(_dtype(held.numel()))
        return Encoded({"values": values, "places": places}, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        found = {}
        for name, shape in header_shapes(encoded).items():
            count = elements(shape)
            places = part(encoded, "places", name, math.ceil(self.share * count), _dtype(count)).long()
            values = part(encoded, "values", name, places.numel(), torch.float32)
            if places.numel() and not (int(places.min()) >= 0 and int(places.max()) < count):
                raise WireError(f"a compressed update's '{name}' has a place outside its {count} values")
            found[name] = torch.zeros(count).index_copy_(0, places, finite(name, values)).view(shape)
        return found


def _dtype(count: int) -> torch.dtype:
    return torch.int32 if count <= torch.iinfo(torch.int32).max else torch.int64


def _largest(values: Tensor, k: int) -> Tensor:
    """Return the places of the k values largest in magnitude, in their order."""
    if k == 0:
        return torch.zeros(0, dtype=torch.int64)
    size = values.abs()
    # torch.topk's value is certain, but of equal values it may take any: these are taken from the front.
    least = size.topk(k).values[-1]
    above = (size > least).nonzero().view(-1)
    equal = (size == least).nonzero().view(-1)[: k - above.numel()]
    return torch.cat([above, equal]).sort().values
