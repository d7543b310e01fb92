"""Blocks of 4-bit integers, packed in pairs, with a scale each."""

from __future__ import annotations

import torch

from medfed.wire.compression.int4 import Int4


def test_int4_packs_two_values_a_byte() -> None:
    # Scale 1: codes 7, -7, 3 are 15, 1, 11 and a padding 8: 0xF1, 0xB8.
    encoded, _ = Int4(block=3).encode({"w": torch.tensor([7.0, -7.0, 3.0])}, {})
    assert encoded.groups["codes"]["w"].tolist() == [0xF1, 0xB8]
    assert Int4(block=3).decode(encoded)["w"].tolist() == [7.0, -7.0, 3.0]
