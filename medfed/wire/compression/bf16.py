"""bfloat16: half the bytes, float32's range, three significant digits.

Kalamkar et al.: A Study of BFLOAT16 for Deep Learning Training, 2019, arXiv:1905.12322. Rounding is to
nearest, ties to even, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medfed.errors import UpdateError
from medfed.wire.compression._compression import Parts
from medfed.wire.compression._tensorwise import Tensorwise


class BF16(Tensorwise, frozen=True, tag="bf16"):
    """bfloat16: half the bytes, float32's range, three significant digits."""

    def encode_tensor(self, name: str, values: Tensor) -> Mapping[str, Tensor]:
        rounded = values.to(torch.bfloat16)
        if not bool(torch.isfinite(rounded).all()):
            # Only values above 3.39e38; float32 ends at 3.40e38.
            raise UpdateError(f"'{name}' can't be compressed: a value exceeds bfloat16's range")
        return {"values": rounded}

    def decode_tensor(self, parts: Parts) -> Tensor:
        return parts.read("values", parts.count, torch.bfloat16).float()
