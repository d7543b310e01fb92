"""The quantisation that int8 and int4 share: each block of values has a step of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roundtrip import decoded, floats

from medfed.wire.compression.int4 import Int4
from medfed.wire.compression.int8 import Int8


@pytest.mark.parametrize("compression, levels", [(Int8, 127), (Int4, 7)])
@settings(max_examples=40, deadline=None)
@given(values=st.lists(floats, min_size=1, max_size=30), block=st.integers(1, 8))
def test_a_blocks_error_is_at_most_half_its_step(
    compression, levels: int, values: list[float], block: int
) -> None:
    result = decoded(compression(block=block), values)
    for first in range(0, len(values), block):
        original = np.array(values[first : first + block])
        largest = np.abs(original).max()
        # Half a step, and float32's rounding of scale and value.
        bound = largest / levels / 2 + largest * 2**-22
        assert np.abs(original - result[first : first + block]).max() <= bound
