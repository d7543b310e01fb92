"""Block-wise int4: an eighth of the bytes, two values per byte.

Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, ICLR 2022,
arXiv:2110.02861, with fewer steps and smaller blocks. Departure: the steps are even (symmetric linear), from
-7 to 7. Such coarse rounding needs the error feedback that `compress` adds.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from medfed.wire.compression._compression import Parts, PositiveInt
from medfed.wire.compression._tensorwise import Blockwise


class Int4(Blockwise, frozen=True, tag="int4"):
    """Integers from -7 to 7 with one scale per `block` values: about an eighth of the bytes."""

    levels: ClassVar[int] = 7

    block: PositiveInt = 64

    def pack(self, codes: Tensor) -> Tensor:
        """Return two codes per byte, each plus 8, the first in the high half; padded with a zero."""
        shifted = torch.full((codes.numel() + codes.numel() % 2,), 8, dtype=torch.uint8)
        shifted[: codes.numel()] = (codes + 8).to(torch.uint8)
        return (shifted[0::2] << 4) | shifted[1::2]

    def unpack(self, parts: Parts) -> Tensor:
        packed = parts.read("codes", -(-parts.count // 2), torch.uint8)
        codes = torch.stack([packed >> 4, packed & 15], dim=1).view(-1).to(torch.int8) - 8
        return codes[: parts.count]
