"""Block-wise int4: an eighth of the bytes, two values per byte.

Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, ICLR 2022,
arXiv:2110.02861, with fewer steps and smaller blocks. Departure: the steps are even (symmetric linear), from
-7 to 7. Such coarse rounding needs the error feedback that `compress` adds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.wire.compression._blockwise import dequantise, quantise
from medfed.wire.compression._compression import (
    Compression,
    PositiveInt,
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


class Int4(Compression, frozen=True, tag="int4"):
    """Integers from -7 to 7 with one scale per `block` values: about an eighth of the bytes."""

    block: PositiveInt = 64

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        codes: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            whole, scales[name] = quantise(flatten(name, tensor), self.block, 7)
            codes[name] = _packed(whole)
        return Encoded({"codes": codes, "scales": scales}, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        decoded = {}
        for name, shape in header_shapes(encoded).items():
            count = count_elements(shape)
            codes = _unpacked(encoded_tensor(encoded, "codes", name, -(-count // 2), torch.uint8))[:count]
            scales = encoded_tensor(encoded, "scales", name, -(-count // self.block), torch.float32)
            decoded[name] = dequantise(codes, check_finite(name, scales), self.block).view(shape)
        return decoded


def _packed(codes: Tensor) -> Tensor:
    """Return two codes per byte, each plus 8, the first in the high half; padded with a zero."""
    shifted = torch.full((codes.numel() + codes.numel() % 2,), 8, dtype=torch.uint8)
    shifted[: codes.numel()] = (codes + 8).to(torch.uint8)
    return (shifted[0::2] << 4) | shifted[1::2]


def _unpacked(packed: Tensor) -> Tensor:
    return torch.stack([packed >> 4, packed & 15], dim=1).view(-1).to(torch.int8) - 8
