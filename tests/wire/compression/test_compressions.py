"""Each compression against its bound or a second derivation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.errors import WireError
from medfed.wire.compression import Compression, Encoded, compress, decompress
from medfed.wire.compression.bf16 import BF16
from medfed.wire.compression.fp16 import FP16
from medfed.wire.compression.int4 import Int4
from medfed.wire.compression.int8 import Int8
from medfed.wire.compression.low_rank import LowRank
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


def test_low_rank_says_a_matrix_of_that_rank_exactly() -> None:
    g = torch.Generator().manual_seed(1)
    matrix = torch.randn(30, 3, generator=g) @ torch.randn(3, 40, generator=g)
    found = LowRank(rank=3).decode(LowRank(rank=3).encode({"w": matrix.view(30, 8, 5)}, {})[0])["w"]
    torch.testing.assert_close(found.view(30, 40), matrix, rtol=1e-4, atol=1e-5)


def test_low_rank_finds_the_best_approximation_over_rounds() -> None:
    g = torch.Generator().manual_seed(2)
    u, _ = torch.linalg.qr(torch.randn(40, 40, generator=g, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(50, 40, generator=g, dtype=torch.float64))
    sizes = torch.tensor([10.0, 8.0, *[1.0 / (i + 1) for i in range(38)]], dtype=torch.float64)
    matrix = u @ torch.diag(sizes) @ v.T
    # Eckart and Young: no rank 2 matrix is nearer than the root of the other singular values' squares.
    best = float(sizes[2:].square().sum().sqrt())
    rule, state = LowRank(rank=2), {}
    for _ in range(8):
        encoded, state = rule.encode({"w": matrix.float()}, state)  # type: ignore[assignment]
    assert float((rule.decode(encoded)["w"] - matrix).norm()) == pytest.approx(best, rel=1e-4)


def test_small_tensors_go_as_they_are_where_factors_would_be_longer() -> None:
    encoded, _ = LowRank(rank=4).encode(
        {"b": torch.ones(9), "m": torch.ones(8, 8), "w": torch.ones(9, 9)}, {}
    )
    assert sorted(encoded.groups["plain"]) == ["b", "m"]
    assert sorted(encoded.groups["left"]) == ["w"]


def test_a_stack_compresses_the_values_it_passes_on() -> None:
    g = torch.Generator().manual_seed(3)
    sent = {"w": torch.randn(1000, generator=g)}
    encoded, _ = compress([TopK(share=0.1), Int8(block=50)], sent, {})
    # 100 values: 4 bytes for each place, 1 for each code, 4 for each of two scales.
    assert encoded.bytes == 100 * 4 + 100 + 2 * 4
    alone, _ = TopK(share=0.1).encode(sent, {})
    short = Int8(block=50).decode(Int8(block=50).encode(alone.groups["values"] | {}, {})[0])["w"]
    found = decompress([TopK(share=0.1), Int8(block=50)], encoded)["w"]
    assert torch.equal(found[alone.groups["places"]["w"].long()], short)


@pytest.mark.parametrize(
    "stages", [[Int4()], [TopK(share=0.1)], [TopK(share=0.1), Int4()], [LowRank(rank=1)]], ids=str
)
def test_gradient_descent_with_feedback_reaches_the_minimum(stages: list[Compression]) -> None:
    # |w - c|^2 / 2 with steps of 0.1: compressed steps end at c, because what is left out is made up for.
    g = torch.Generator().manual_seed(4)
    centre = torch.randn(12, 10, generator=g)
    w, state = torch.zeros(12, 10), {}
    for _ in range(600):
        encoded, state = compress(stages, {"w": 0.1 * (centre - w)}, state)  # type: ignore[assignment]
        w = w + decompress(stages, encoded)["w"]
    assert float((w - centre).norm() / centre.norm()) < 1e-3


def test_settings_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"top_k.share: Expected `float` > 0"):
        TopK(share=0.0)
    with pytest.raises(ValueError, match=r"int8.block: Expected `int` >= 1"):
        Int8(block=0)
