"""bfloat16: half the bytes, float32's range, three significant digits.

Kalamkar et al.: A Study of BFLOAT16 for Deep Learning Training, 2019, arXiv:1905.12322. Rounding is to
nearest, ties to even, as in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.errors import UpdateError
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


class BF16(Compression, frozen=True, tag="bf16"):
    """bfloat16: half the bytes, float32's range, three significant digits."""

    def encode(self, weights: Weights, state: State) -> tuple[Encoded, State]:
        values = {name: _rounded(name, tensor) for name, tensor in weights.items()}
        return Encoded({"values": values}, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded: Encoded) -> dict[str, Tensor]:
        return {
            name: check_finite(name, _values(encoded, name, shape).float()).view(shape)
            for name, shape in header_shapes(encoded).items()
        }


def _values(encoded: Encoded, name: str, shape: list[int]) -> Tensor:
    return encoded_tensor(encoded, "values", name, count_elements(shape), torch.bfloat16)


def _rounded(name: str, tensor: Tensor) -> Tensor:
    values = flatten(name, tensor).to(torch.bfloat16)
    if not bool(torch.isfinite(values).all()):
        # Only values above 3.39e38; float32 ends at 3.40e38.
        raise UpdateError(f"'{name}' can't be compressed: a value exceeds bfloat16's range")
    return values
