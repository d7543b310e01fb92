"""Block-wise int8: a quarter of the bytes.

Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, ICLR 2022,
arXiv:2110.02861: each block of values is scaled by its largest magnitude. Departure: the steps are even
(symmetric linear), not the paper's dynamic tree, so that an error is at most half a step.
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


class Int8(Compression, frozen=True, tag="int8"):
    """Integers from -127 to 127 with one scale per `block` values: a quarter of the bytes."""

    block: PositiveInt = 256

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        codes: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            codes[name], scales[name] = quantise(flatten(name, tensor), self.block, 127)
        return Encoded({"codes": codes, "scales": scales}, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        decoded = {}
        for name, shape in header_shapes(encoded).items():
            count = count_elements(shape)
            codes = encoded_tensor(encoded, "codes", name, count, torch.int8)
            scales = encoded_tensor(encoded, "scales", name, -(-count // self.block), torch.float32)
            decoded[name] = dequantise(codes, check_finite(name, scales), self.block).view(shape)
        return decoded
