"""bfloat16: half the bytes, the range of float32, three significant digits.

Kalamkar et al.: A Study of BFLOAT16 for Deep Learning Training, 2019, arXiv:1905.12322. Rounded to the
nearest, ties to even; nothing departs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.errors import UpdateError
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


class BF16(Compression, frozen=True, tag="bf16"):
    """bfloat16: half the bytes, any size of number, three digits."""

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        values = {name: _rounded(name, tensor) for name, tensor in weights.items()}
        return Encoded({"values": values}, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        return {
            name: finite(name, part(encoded, "values", name, elements(shape), torch.bfloat16).float()).view(
                shape
            )
            for name, shape in header_shapes(encoded).items()
        }


def _rounded(name: str, tensor: Tensor) -> Tensor:
    values = flat(name, tensor).to(torch.bfloat16)
    if not bool(torch.isfinite(values).all()):
        # Only above 3.39e38, where float32 ends at 3.40e38.
        raise UpdateError(f"'{name}' can't be compressed: a value leaves bfloat16's range")
    return values
