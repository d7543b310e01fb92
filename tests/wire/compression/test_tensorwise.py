"""Each compression of single tensors against its bound or a second derivation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.errors import WireError
from medfed.wire.compression import Compression, Encoded
from medfed.wire.compression.bf16 import BF16
from medfed.wire.compression.fp16 import FP16
from medfed.wire.compression.int4 import Int4
from medfed.wire.compression.int8 import Int8
from medfed.wire.compression.top_k import TopK

torch.set_num_threads(1)

floats = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


def decoded(one: Compression, values: list[float]) -> np.ndarray:
    sent = {"w": torch.tensor(values, dtype=torch.float32)}
    return one.decode(one.encode(sent, {})[0])["w"].numpy().astype(np.float64)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(floats, min_size=1, max_size=30),
    levels=st.sampled_from([127, 7]),
    block=st.integers(1, 8),
)
def test_a_blocks_error_is_at_most_half_its_step(values: list[float], levels: int, block: int) -> None:
    found = decoded(Int8(block=block) if levels == 127 else Int4(block=block), values)
    for first in range(0, len(values), block):
        original = np.array(values[first : first + block])
        step = np.abs(original).max() / levels
        # Half a step, and float32's rounding of scale and value.
        assert (
            np.abs(original - found[first : first + block]).max()
            <= step / 2 + np.abs(original).max() * 2**-22
        )


def test_int8_by_hand() -> None:
    # Scale 254 / 127 = 2: codes 127, -1 (-2.9 is -1.45 steps), 2 (3 is 1.5 steps, to even), 0.
    encoded, _ = Int8(block=4).encode({"w": torch.tensor([254.0, -2.9, 3.0, 0.9])}, {})
    assert encoded.groups["codes"]["w"].tolist() == [127, -1, 2, 0]
    assert encoded.groups["scales"]["w"].tolist() == [2.0]


def test_int4_packs_two_values_a_byte() -> None:
    # Scale 1: codes 7, -7, 3 are 15, 1, 11 and a padding 8: 0xF1, 0xB8.
    encoded, _ = Int4(block=3).encode({"w": torch.tensor([7.0, -7.0, 3.0])}, {})
    assert encoded.groups["codes"]["w"].tolist() == [0xF1, 0xB8]
    assert Int4(block=3).decode(encoded)["w"].tolist() == [7.0, -7.0, 3.0]


@settings(max_examples=60, deadline=None)
@given(values=st.lists(floats, min_size=1, max_size=20))
def test_bf16_and_fp16_keep_their_digits(values: list[float]) -> None:
    original = np.array(values)
    # Eight bits of significand: half a unit in the last place is 2^-8 (subnormals aside, which flush).
    assert (np.abs(decoded(BF16(), values) - original) <= np.abs(original) * 2**-8 * 1.001 + 1e-37).all()
    # Eleven bits, relative to the tensor's largest value below 2^-14 of float16's own top.
    assert (
        np.abs(decoded(FP16(), values) - original)
        <= np.abs(original) * 2**-11 + np.abs(original).max() * 2**-38
    ).all()


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=20), share=st.floats(0.01, 1))
def test_top_k_keeps_the_largest_and_of_equals_the_first(values: list[float], share: float) -> None:
    k = math.ceil(share * len(values))
    largest = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k])
    expected = np.zeros(len(values))
    expected[largest] = np.array(values)[largest]
    np.testing.assert_array_equal(decoded(TopK(share=share), values), expected)


def test_top_k_refuses_a_place_outside() -> None:
    encoded, _ = TopK(share=0.5).encode({"w": torch.arange(4.0)}, {})
    for place in (-1, 4):
        bad = {**encoded.groups, "places": {"w": torch.tensor([0, place], dtype=torch.int32)}}
        with pytest.raises(WireError, match="'w' has an index outside its 4 values"):
            TopK(share=0.5).decode(Encoded(bad, encoded.header))


def test_fp16_refuses_an_exponent_that_no_float32_has() -> None:
    encoded, _ = FP16().encode({"w": torch.ones(2)}, {})
    bad = {**encoded.groups, "exponents": {"w": torch.tensor([30000], dtype=torch.int16)}}
    with pytest.raises(WireError, match="'w' has an exponent of 30000"):
        FP16().decode(Encoded(bad, encoded.header))


def test_settings_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"top_k.share: Expected `float` > 0"):
        TopK(share=0.0)
    with pytest.raises(ValueError, match=r"int8.block: Expected `int` >= 1"):
        Int8(block=0)
