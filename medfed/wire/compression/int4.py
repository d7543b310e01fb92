"""int4 by blocks: an eighth of the bytes, two values a byte.

Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, ICLR 2022,
arXiv:2110.02861, with fewer steps and smaller blocks. Departure: the steps are even (symmetric linear), from
-7 to 7. So coarse a rounding needs the error feedback that `compress` adds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.wire.compression._blockwise import quantise, restore
from medfed.wire.compression._compression import (
    AtLeastOne,
    Compression,
    Encoded,
    State,
    elements,
    finite,
    flat,
    header_shapes,
    part,
    tensor_shapes,
)
from medfed.wire.weights import Weights


class Int4(Compression, frozen=True, tag="int4"):
    """Whole numbers from -7 to 7 with a scale for each `block` values: about an eighth of the bytes."""

    block: AtLeastOne = 64

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        codes: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            whole, scales[name] = quantise(flat(name, tensor), self.block, 7)
            codes[name] = _packed(whole)
        return Encoded({"codes": codes, "scales": scales}, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        found = {}
        for name, shape in header_shapes(encoded).items():
            count = elements(shape)
            codes = _unpacked(part(encoded, "codes", name, -(-count // 2), torch.uint8))[:count]
            scales = part(encoded, "scales", name, -(-count // self.block), torch.float32)
            found[name] = restore(codes, finite(name, scales), self.block).view(shape)
        return found


def _packed(codes: Tensor) -> Tensor:
    """Return two codes a byte, the first in the high half, each plus 8; an odd one out is followed"
    " by a zero."""
    shifted = torch.full((codes.numel() + codes.numel() % 2,), 8, dtype=torch.uint8)
    shifted[: codes.numel()] = (codes + 8).to(torch.uint8)
    return (shifted[0::2] << 4) | shifted[1::2]


def _unpacked(packed: Tensor) -> Tensor:
    return torch.stack([packed >> 4, packed & 15], dim=1).view(-1).to(torch.int8) - 8
