"""The eight bits of significand that bfloat16 keeps."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from roundtrip import decoded, floats

from medfed.wire.compression.bf16 import BF16


@settings(max_examples=60, deadline=None)
@given(values=st.lists(floats, min_size=1, max_size=20))
def test_it_keeps_eight_bits_of_significand(values: list[float]) -> None:
    original = np.array(values)
    # Half a unit in the last place is 2^-8 (subnormals aside, which flush to zero).
    assert (np.abs(decoded(BF16(), values) - original) <= np.abs(original) * 2**-8 * 1.001 + 1e-37).all()
