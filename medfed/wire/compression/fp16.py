"""float16 with one scale per tensor: half the bytes, four significant digits.

Micikevicius et al.: Mixed Precision Training, ICLR 2018, arXiv:1710.03740, applies its loss scaling to
deltas, which are often below 6e-8, float16's smallest number. Departure: each tensor's scale is the power of
two that brings its largest value just below float16's largest, so that no value overflows, few underflow, and
scaling itself causes no rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from medfed.errors import WireError
from medfed.wire.compression._compression import Parts
from medfed.wire.compression._tensorwise import Tensorwise

# The exponent of a tensor's largest value after scaling: float16 ends at 65504, and a value between 2^14 and
# 2^15 stays below that even after rounding.
MAX_SCALED_EXPONENT = 15

# The largest valid magnitude of a scale's exponent: float32 reaches from 2^-149 to 2^128.
MAX_SCALE_EXPONENT = 149 + MAX_SCALED_EXPONENT


class FP16(Tensorwise, frozen=True, tag="fp16"):
    """float16 with one scale per tensor: half the bytes, four significant digits."""

    groups: ClassVar[tuple[str, ...]] = ("values", "exponents")

    def encode_tensor(self, name: str, values: Tensor) -> Mapping[str, Tensor]:
        full = values.double()
        exponent = math.frexp(float(full.abs().max()))[1] - MAX_SCALED_EXPONENT if full.numel() else 0
        exponents = torch.tensor([exponent], dtype=torch.int16)
        return {"values": (full * 2.0**-exponent).half(), "exponents": exponents}

    def decode_tensor(self, parts: Parts) -> Tensor:
        values = parts.read("values", parts.count, torch.float16).double()
        exponent = int(parts.read("exponents", 1, torch.int16))
        if abs(exponent) > MAX_SCALE_EXPONENT:
            raise WireError(
                f"a compressed update's '{parts.name}' has an exponent of {exponent}, beyond float32's"
            )
        return (values * 2.0**exponent).float()
