"""The eleven bits of significand that float16 keeps, scaled by an exponent per tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from roundtrip import decoded, floats

from medfed.errors import WireError
from medfed.wire.compression import Encoded
from medfed.wire.compression.fp16 import FP16


@settings(max_examples=60, deadline=None)
@given(values=st.lists(floats, min_size=1, max_size=20))
def test_it_keeps_eleven_bits_of_significand(values: list[float]) -> None:
    original = np.array(values)
    # Absolute below 2^-38 of the tensor's largest value, where float16 has no more exponents.
    bound = np.abs(original) * 2**-11 + np.abs(original).max() * 2**-38
    assert (np.abs(decoded(FP16(), values) - original) <= bound).all()


def test_fp16_refuses_an_exponent_that_no_float32_has() -> None:
    encoded, _ = FP16().encode({"w": torch.ones(2)}, {})
    bad = {**encoded.groups, "exponents": {"w": torch.tensor([30000], dtype=torch.int16)}}
    with pytest.raises(WireError, match="'w' has an exponent of 30000"):
        FP16().decode(Encoded(bad, encoded.header))
