"""Blocks of 8-bit integers with a scale each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from roundtrip import check_block_errors, floats

from medfed.wire.compression.int8 import Int8


@settings(max_examples=40, deadline=None)
@given(values=st.lists(floats, min_size=1, max_size=30), block=st.integers(1, 8))
def test_a_blocks_error_is_at_most_half_its_step(values: list[float], block: int) -> None:
    check_block_errors(Int8(block=block), 127, block, values)


def test_int8_by_hand() -> None:
    # Scale 254 / 127 = 2: codes 127, -1 (-2.9 is -1.45 steps), 2 (3 is 1.5 steps, to even), 0.
    encoded, _ = Int8(block=4).encode({"w": torch.tensor([254.0, -2.9, 3.0, 0.9])}, {})
    assert encoded.groups["codes"]["w"].tolist() == [127, -1, 2, 0]
    assert encoded.groups["scales"]["w"].tolist() == [2.0]


def test_a_block_of_no_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"int8.block: Expected `int` >= 1"):
        Int8(block=0)
