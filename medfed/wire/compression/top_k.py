"""Top-k: the largest values of each tensor with their indices; the rest waits for later rounds.

Stich, Cordonnier, Jaggi: Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599; Aji, Heafield, EMNLP
2017, arXiv:1704.05021. Of equal magnitudes the first are sent, so that the choice is the same on every
machine. Departure: k is a share of each tensor and at least one value, where the paper's is of all weights
together; otherwise a network's first layers, whose deltas are small, would not be updated for long.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from medfed.errors import WireError
from medfed.wire.compression._compression import (
    Compression,
    Share,
    State,
    check_finite,
    count_elements,
    encoded_tensor,
    flatten,
    header_shapes,
    tensor_shapes,
)
from medfed.wire.update import Encoded
from medfed.wire.weights import Weights


class TopK(Compression, frozen=True, tag="top_k"):
    """The `share` of each tensor's values that is largest in magnitude, with their indices."""

    share: Share = 0.05

    chainable: ClassVar[tuple[str, ...]] = ("values",)

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        values: dict[str, Tensor] = {}
        indices: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            full = flatten(name, tensor)
            largest = _largest(full, math.ceil(self.share * full.numel()))
            values[name] = full[largest]
            indices[name] = largest.to(_index_dtype(full.numel()))
        return Encoded({"values": values, "places": indices}, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        decoded = {}
        for name, shape in header_shapes(encoded).items():
            count = count_elements(shape)
            k = math.ceil(self.share * count)
            indices = encoded_tensor(encoded, "places", name, k, _index_dtype(count)).long()
            values = check_finite(name, encoded_tensor(encoded, "values", name, k, torch.float32))
            if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < count):
                raise WireError(f"a compressed update's '{name}' has an index outside its {count} values")
            decoded[name] = torch.zeros(count).index_copy_(0, indices, values).view(shape)
        return decoded


def _index_dtype(count: int) -> torch.dtype:
    return torch.int32 if count <= torch.iinfo(torch.int32).max else torch.int64


def _largest(values: Tensor, k: int) -> Tensor:
    """Return the indices of the k values largest in magnitude, in ascending order."""
    if k == 0:
        return torch.zeros(0, dtype=torch.int64)
    magnitudes = values.abs()
    # torch.topk's smallest value is determined, but not which of equal values it takes: the first
    # are taken here.
    smallest = magnitudes.topk(k).values[-1]
    above = (magnitudes > smallest).nonzero().view(-1)
    equal = (magnitudes == smallest).nonzero().view(-1)[: k - above.numel()]
    return torch.cat([above, equal]).sort().values
