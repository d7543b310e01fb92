"""int8 by blocks: a quarter of the bytes.

Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, ICLR 2022,
arXiv:2110.02861: a scale for each block of values, its largest magnitude. Departure: the steps are even
(symmetric linear), not the paper's dynamic tree, so that an error is at most half a step.
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


class Int8(Compression, frozen=True, tag="int8"):
    """Whole numbers from -127 to 127 with a scale for each `block` values: a quarter of the bytes."""

    block: AtLeastOne = 256

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        codes: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            codes[name], scales[name] = quantise(flat(name, tensor), self.block, 127)
        return Encoded({"codes": codes, "scales": scales}, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        found = {}
        for name, shape in header_shapes(encoded).items():
            count = elements(shape)
            codes = part(encoded, "codes", name, count, torch.int8)
            scales = part(encoded, "scales", name, -(-count // self.block), torch.float32)
            found[name] = restore(codes, finite(name, scales), self.block).view(shape)
        return found
