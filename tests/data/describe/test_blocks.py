"""Whole numbers as floats that are added without an error, and what no honest hospital sends."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.data.describe.blocks import Block, decode, encode, length_of
from medfed.errors import DataError

BLOCKS = (
    Block("hospitals", 2, "flags"),
    Block("patients", 1, "counts"),
    Block("cases", 1, "counts"),
    Block("sex", 3, "patients"),
    Block("total", 2, "sums", 3),
)
NORTH = {"hospitals": [1, 1], "patients": [12], "cases": [20], "sex": [7, 5, 0], "total": [2**90 + 1, -3]}
SOUTH = {"hospitals": [1, 1], "patients": [30], "cases": [30], "sex": [0, 0, 30], "total": [-(2**90), 2]}


def test_the_sum_of_vectors_is_the_sum_of_whole_numbers_without_an_error():
    vectors = [encode(BLOCKS, NORTH), encode(BLOCKS, SOUTH)]
    assert [len(one) for one in vectors] == [length_of(BLOCKS), 2 + 1 + 1 + 3 + 6]
    # As floats, 2^90 + 1 - 2^90 would be 0.
    assert decode(BLOCKS, vectors[0] + vectors[1], 2) == {
        "hospitals": [2, 2],
        "patients": [42],
        "cases": [50],
        "sex": [7, 5, 30],
        "total": [1, -1],
    }
    assert decode(BLOCKS, vectors[0]) == NORTH


def test_a_block_without_values_is_zeros_and_a_number_with_too_many_digits_is_refused():
    assert decode(BLOCKS, encode(BLOCKS, {"hospitals": [1, 0]}))["sex"] == [0, 0, 0]
    with pytest.raises(DataError, match="'patients' has more than 32 bits"):
        encode(BLOCKS, {"patients": [2**32]})


@pytest.mark.parametrize(
    "place, lie, match",
    [
        (2, np.nan, "'patients' is not finite"),
        (2, np.inf, "'patients' is not finite"),
        (4, -1.0, "'sex' is negative"),
        (4, 7.5, "'sex' is not whole"),
        (4, 8.0, "'sex' counts 13 patients, and there are 12"),
        (0, 2.0, "'hospitals' counts 2 of 1 hospitals"),
        (2, 2.0**32, "'patients' is too large"),
        (7, -(2.0**40), "'total' is too large"),
    ],
)
def test_a_lie_is_refused_by_the_name_of_its_block(place, lie, match):
    vector = encode(BLOCKS, NORTH)
    vector[place] = lie
    with pytest.raises(DataError, match=match):
        decode(BLOCKS, vector)


def test_a_vector_of_another_study_is_refused():
    with pytest.raises(DataError, match="12 numbers, expected 13"):
        decode(BLOCKS, encode(BLOCKS, NORTH)[1:])
