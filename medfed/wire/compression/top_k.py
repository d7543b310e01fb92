"""Top-k: the largest values of each tensor with their indices; the rest waits for later rounds.

Stich, Cordonnier, Jaggi: Sparsified SGD with Memory, NeurIPS 2018, arXiv:1809.07599; Aji, Heafield, EMNLP
2017, arXiv:1704.05021. Of equal magnitudes the first are sent, so that the choice is the same on every
machine. Departure: k is a share of each tensor and at least one value, where the paper's is of all weights
together; otherwise a network's first layers, whose deltas are small, would not be updated for long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from medfed.errors import WireError
from medfed.wire.compression._compression import Parts, Share
from medfed.wire.compression._tensorwise import Tensorwise


class TopK(Tensorwise, frozen=True, tag="top_k"):
    """The `share` of each tensor's values that is largest in magnitude, with their indices."""

    groups: ClassVar[tuple[str, ...]] = ("values", "places")
    chainable: ClassVar[tuple[str, ...]] = ("values",)

    share: Share = 0.05

    def encode_tensor(self, name: str, values: Tensor) -> Mapping[str, Tensor]:
        largest = _largest(values, self._k(values.numel()))
        return {"values": values[largest], "places": largest.to(_index_dtype(values.numel()))}

    def decode_tensor(self, parts: Parts) -> Tensor:
        k = self._k(parts.count)
        indices = parts.read("places", k, _index_dtype(parts.count)).long()
        values = parts.read("values", k, torch.float32)
        if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < parts.count):
            raise WireError(
                f"a compressed update's '{parts.name}' has an index outside its {parts.count} values"
            )
        return torch.zeros(parts.count).index_copy_(0, indices, values)

    def _k(self, count: int) -> int:
        return math.ceil(self.share * count)


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
