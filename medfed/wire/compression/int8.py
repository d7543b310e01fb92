"""Block-wise int8: a quarter of the bytes.

Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, ICLR 2022,
arXiv:2110.02861: each block of values is scaled by its largest magnitude. Departure: the steps are even
(symmetric linear), not the paper's dynamic tree, so that an error is at most half a step.
"""

from __future__ import annotations

from typing import ClassVar

from medfed.wire.compression._compression import PositiveInt
from medfed.wire.compression._tensorwise import Blockwise


class Int8(Blockwise, frozen=True, tag="int8"):
    """Integers from -127 to 127 with one scale per `block` values: a quarter of the bytes."""

    levels: ClassVar[int] = 127

    block: PositiveInt = 256
