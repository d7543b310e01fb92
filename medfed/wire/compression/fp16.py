"""float16 with one scale per tensor: half the bytes, four significant digits.

Micikevicius et al.: Mixed Precision Training, ICLR 2018, arXiv:1710.03740, applies its loss scaling to
deltas, which are often below 6e-8, float16's smallest number. Departure: each tensor's scale is the power of
two that brings its largest value just below float16's largest, so that no value overflows, few underflow, and
scaling itself causes no rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medfed.errors import WireError
from medfed.wire.compression._compression import (
    Compression,
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

# The exponent of a tensor's largest value after scaling: float16 ends at 65504, and a value between 2^14 and
# 2^15 stays below that even after rounding.
MAX_SCALED_EXPONENT = 15

# The largest valid magnitude of a scale's exponent: float32 reaches from 2^-149 to 2^128.
MAX_SCALE_EXPONENT = 149 + MAX_SCALED_EXPONENT


class FP16(Compression, frozen=True, tag="fp16"):
    """float16 with one scale per tensor: half the bytes, four significant digits."""

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        values: dict[str, Tensor] = {}
        exponents: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            full = flatten(name, tensor).double()
            largest = float(full.abs().max()) if full.numel() else 0.0
            exponent = math.frexp(largest)[1] - MAX_SCALED_EXPONENT if full.numel() else 0
            values[name] = (full * 2.0**-exponent).half()
            exponents[name] = torch.tensor([exponent], dtype=torch.int16)
        return Encoded({"values": values, "exponents": exponents}, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        decoded = {}
        for name, shape in header_shapes(encoded).items():
            values = encoded_tensor(encoded, "values", name, count_elements(shape), torch.float16).double()
            exponent = int(encoded_tensor(encoded, "exponents", name, 1, torch.int16))
            if abs(exponent) > MAX_SCALE_EXPONENT:
                raise WireError(
                    f"a compressed update's '{name}' has an exponent of {exponent}, beyond float32's"
                )
            decoded[name] = check_finite(name, (values * 2.0**exponent).float()).view(shape)
        return decoded
