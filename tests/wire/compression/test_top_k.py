"""The largest values with their indices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from roundtrip import decoded

from medfed.errors import WireError
from medfed.wire.compression import Encoded
from medfed.wire.compression.top_k import TopK


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=20), share=st.floats(0.01, 1))
def test_top_k_keeps_the_largest_and_of_equals_the_first(values: list[float], share: float) -> None:
    k = math.ceil(share * len(values))
    largest = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k])
    expected = np.zeros(len(values))
    expected[largest] = np.array(values)[largest]
    np.testing.assert_array_equal(decoded(TopK(share=share), values), expected)


def test_top_k_refuses_an_index_outside() -> None:
    encoded, _ = TopK(share=0.5).encode({"w": torch.arange(4.0)}, {})
    for place in (-1, 4):
        bad = {**encoded.groups, "places": {"w": torch.tensor([0, place], dtype=torch.int32)}}
        with pytest.raises(WireError, match="'w' has an index outside its 4 values"):
            TopK(share=0.5).decode(Encoded(bad, encoded.header))


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"top_k.share: Expected `float` > 0"):
        TopK(share=0.0)
