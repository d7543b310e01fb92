"""Numbers that stand for kinds are told from amounts, counts and grades."""

from __future__ import annotations

import pytest

from medfed.pipeline._codes import CODE_WORDS, MAX_CODES, ORDERED_WORDS, are_codes


@pytest.mark.parametrize(
    ("name", "values", "codes"),
    [
        # A few whole numbers that do not count from 0 are codes unless the heading says otherwise.
        ("pain", [1, 2, 3, 4], True),
        ("pain", [0, 1, 2, 3], False),
        ("ECOG-score", [1, 2, 3], False),
        # A heading of codes decides even where the numbers count from 0, or where it is also a grade.
        ("Scanner_2", [0, 1, 2], True),
        ("stage type", [0, 1, 2], True),
        # Two numbers say the same as an amount or as a category; too many are an amount.
        ("sex", [1, 2], False),
        ("ward", list(range(1, MAX_CODES + 1)), True),
        ("ward", list(range(1, MAX_CODES + 2)), False),
        ("type", [1, 1.5, 2], False),
        # A word counts as a whole word only.
        ("prototype", [0, 1, 2], False),
    ],
)
def test_codes_are_recognised_by_heading_and_values(name, values, codes):
    assert are_codes(name, values) is codes


def test_no_word_means_both():
    assert not CODE_WORDS & ORDERED_WORDS
