"""Numbers that go through a compression of single tensors and back."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from medfed.wire.compression import Compression

floats = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


def decoded(compression: Compression, values: list[float]) -> np.ndarray:
    tensors = {"w": torch.tensor(values, dtype=torch.float32)}
    return compression.decode(compression.encode(tensors, {})[0])["w"].numpy().astype(np.float64)


def check_block_errors(compression: Compression, levels: int, block: int, values: list[float]) -> None:
    """Check that each value is off by at most half a step of its block (largest value over `levels`)."""
    result = decoded(compression, values)
    for first in range(0, len(values), block):
        original = np.array(values[first : first + block])
        largest = np.abs(original).max()
        # Half a step, and float32's rounding of scale and value.
        assert (
            np.abs(original - result[first : first + block]).max() <= largest / levels / 2 + largest * 2**-22
        )
