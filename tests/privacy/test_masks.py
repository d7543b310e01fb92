"""Fixed-point sums modulo 2^bits: exact with and without masks, and what they cannot hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from medfed.errors import UpdateError
from medfed.privacy._masks import (
    _BLOCK,
    FixedPoint,
    MaskedSum,
    Scratch,
    Stream,
    masked,
    unmasked,
)

KEY, OTHER = b"k" * 32, b"o" * 32


def plain_stream(key: bytes, count: int, bits: int) -> np.ndarray:
    """Return the key's AES-256 counter stream as unsigned integers, by the library in one call."""
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(count * bits // 8)), f"<u{bits // 8}")


@pytest.mark.parametrize(
    "point, scale",
    [
        # 2^31 / (4 * 16) is 2^25, and the headroom for rounding leaves the power of two below.
        (FixedPoint(32, 16, 4), 2.0**24),
        (FixedPoint(32, 10, 3), 2.0**26),  # 2^31 / 30 lies between 2^26 and 2^27
        (FixedPoint(64, 1024, 2), 2.0**51),
        (FixedPoint(64, 10**6, 5, steps=1.0), 1.0),
    ],
)
def test_the_scale_is_the_largest_power_of_two_that_cannot_overflow(point, scale):
    assert point.scale == scale
    if point.steps is None:
        assert point.terms * (point.limit * scale + 0.5) < 2.0 ** (point.bits - 1)


@pytest.mark.parametrize("bits", [32, 64])
def test_a_masked_value_is_the_rounded_one_plus_the_keys_stream(bits):
    point = FixedPoint(bits, 4, 2)
    values = torch.tensor([[1.0, -1.0, 0.3], [3.9, -4.0, 0.0]])
    numbers, largest = masked(values, point, 0.5, [Stream(KEY, 1)], Scratch())
    assert (numbers.dtype, numbers.shape, largest) == (point.dtype, (6,), 4.0)
    exact = np.rint(values.double().numpy().ravel() * 0.5 * point.scale).astype(np.int64)
    expected = exact.astype(point.unsigned) + plain_stream(KEY, 6, bits)
    assert np.array_equal(numbers.numpy().view(point.unsigned), expected)


@pytest.mark.parametrize("bits", [32, 64])
def test_masks_that_cancel_leave_the_exact_sum_over_many_blocks(bits):
    point, count = FixedPoint(bits, 8, 2), 2 * _BLOCK + 5
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(count, generator=generator) for _ in range(2))
    sent = [
        masked(one, point, 1.0, [Stream(KEY, 1), Stream(OTHER, 1)], Scratch())[0],
        masked(two, point, 1.0, [Stream(KEY, -1)], Scratch())[0],
    ]
    running = MaskedSum()
    for site, numbers in zip(("north", "south"), sent, strict=True):
        running.add(site, {"w": numbers})
    total = unmasked(running.numbers["w"], point, 0.25, [Stream(OTHER, -1)], Scratch())
    steps = sum(np.rint(part.double().numpy() * point.scale) for part in (one, two))
    assert np.array_equal(total.numpy(), steps * (0.25 / point.scale))


def test_a_pair_stands_for_its_difference_in_float64():
    # 2^24 + 1 is no float32: a difference in float32 would lose the 1.
    pair = (torch.tensor([2.0**24 + 2]), torch.tensor([2.0**24]))
    numbers, largest = masked(pair, FixedPoint(64, 4, 1, steps=1.0), 1.0, [], Scratch())
    assert (numbers.tolist(), largest) == ([2], 2.0)


def test_bfloat16_and_negative_numbers_come_back():
    point = FixedPoint(64, 4, 1)
    values = torch.tensor([-1.5, 2.25, -4.0], dtype=torch.bfloat16)
    numbers, _ = masked(values, point, 1.0, [], Scratch())
    assert unmasked(numbers, point, 1.0, [], Scratch()).tolist() == [-1.5, 2.25, -4.0]


@pytest.mark.parametrize("bad, largest", [(5.0, 5.0), (-6.0, 6.0), (np.nan, np.inf), (np.inf, np.inf)])
def test_the_largest_value_is_reported_where_it_exceeds_the_limit(bad, largest):
    values = torch.tensor([0.0] * _BLOCK + [bad, 1.0])
    assert masked(values, FixedPoint(64, 4, 1), 1.0, [], Scratch())[1] == largest


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_running_sum_wraps_around_and_leaves_what_was_sent_as_it_is(dtype):
    most = torch.iinfo(dtype).max
    first, second = torch.tensor([most, 1], dtype=dtype), torch.tensor([2, 3], dtype=dtype)
    running = MaskedSum()
    running.add("north", {"w": first})
    running.add("south", {"w": second})
    # (2^(bits - 1) - 1) + 2 is -(2^(bits - 1)) + 1 modulo 2^bits.
    assert running.numbers["w"].tolist() == [-most, 4]
    assert (running.sites, first.tolist()) == (["north", "south"], [most, 1])
    with pytest.raises(UpdateError, match="'north': its update is in the sum already"):
        running.add("north", {"w": second})
    assert running.numbers["w"].tolist() == [-most, 4]
