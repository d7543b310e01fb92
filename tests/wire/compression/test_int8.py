"""Blocks of 8-bit integers with a scale each."""

from __future__ import annotations

import pytest
import torch

from medfed.wire.compression.int8 import Int8


def test_int8_by_hand() -> None:
    # Scale 254 / 127 = 2: codes 127, -1 (-2.9 is -1.45 steps), 2 (3 is 1.5 steps, to even), 0.
    encoded, _ = Int8(block=4).encode({"w": torch.tensor([254.0, -2.9, 3.0, 0.9])}, {})
    assert encoded.groups["codes"]["w"].tolist() == [127, -1, 2, 0]
    assert encoded.groups["scales"]["w"].tolist() == [2.0]


def test_a_block_of_no_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"int8.block: Expected `int` >= 1"):
        Int8(block=0)
