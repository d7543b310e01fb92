"""float16 with a scale a tensor: half the bytes, four significant digits.

Micikevicius et al.: Mixed Precision Training, ICLR 2018, arXiv:1710.03740, whose loss scaling this is for
deltas: they are often below 6e-8, where float16 ends. Departure: the scale is a power of two for each tensor
that brings its largest value just below float16's largest, so that none overflows, few vanish, and the scale
itself rounds nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medfed.errors import WireError
from medfed.wire.compression._compression import (
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

# float16 ends at 65504: a largest value between 2^14 and 2^15 is within, whatever rounding adds.
TOP = 15

# float32 reaches from 2^-149 to 2^128.
FARTHEST = 149 + TOP


class FP16(Compression, frozen=True, tag="fp16"):
    """float16 with a scale a tensor: half the bytes, four digits."""

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        values: dict[str, Tensor] = {}
        exponents: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            held = flat(name, tensor).double()
            exponent = math.frexp(float(held.abs().max()))[1] - TOP if held.numel() else 0
            values[name] = (held * 2.0**-exponent).half()
            exponents[name] = torch.tensor([exponent], dtype=torch.int16)
        return Encoded({"values": values, "exponents": exponents}, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        found = {}
        for name, shape in header_shapes(encoded).items():
            values = part(encoded, "values", name, elements(shape), torch.float16).double()
            exponent = int(part(encoded, "exponents", name, 1, torch.int16))
            if abs(exponent) > FARTHEST:
                raise WireError(
                    f"a compressed update's '{name}' has an exponent of {exponent}, beyond float32's"
                )
            found[name] = finite(name, (values * 2.0**exponent).float()).view(shape)
        return found
