"""Sketches: bins by hand, sums in any order, and what may leave."""

from __future__ import annotations

import math

import pytest

from medfed.errors import DataError
from medfed.evaluation.drift.sketch import Column, Sketch, Variable, bin_of, merge, released, sketch_of

NUMBER = Variable(name="age", kind="input", grid="number")
SHARE = Variable(name="score", kind="output", grid="share")
WORDS = Variable(name="sex", kind="input", grid="words", words=("f", "m"))


@pytest.mark.parametrize(
    ("value", "place"),
    [(1.0, 24001), (10.0, 26001), (-1.0, -24001), (0.0, 0), (9e-13, 0), (0.001, 18001), (2e-12, 603),
     (1e16, 54001), (None, None), (math.nan, None)],
)  # fmt: skip
def test_a_number_lies_in_its_bin_of_a_2000th_of_a_decade(value, place) -> None:
    assert bin_of(value, NUMBER) == place


def test_shares_and_words_have_their_bins() -> None:
    # The logit of 0.75 is ln 3 = 1.0986, of 0.001 -6.9068; 50 bins each.
    shares = {
        0.0: -800,
        1e-9: -800,
        0.001: -346,
        0.5: 0,
        0.504: 0,
        0.506: 1,
        0.75: 54,
        1.0: 800,
        1.2: 800,
        -0.1: -800,
    }
    assert {x: bin_of(x, SHARE) for x in shares} == shares
    assert [bin_of(x, WORDS) for x in ("f", "m", None)] == [0, 1, None]
    with pytest.raises(DataError, match="'sex' holds a word that is none of the study's"):
        bin_of("Anna", WORDS)


def test_patients_are_counted_and_what_they_lack_is_missing() -> None:
    result = sketch_of([NUMBER, WORDS], [{"age": 10.0, "sex": "f"}, {"age": None, "sex": "f"}, {"sex": "m"}])
    age, sex = result.columns
    assert (age.counts, age.missing, age.patients) == ({26001: 1}, 1, 2)
    assert (sex.counts, sex.missing) == ({0: 2, 1: 1}, 0)


def test_a_sum_is_the_sketch_of_all_in_any_order() -> None:
    people = [{"age": float(x), "sex": "fm"[x % 2]} for x in range(1, 40)]
    parts = [sketch_of([NUMBER, WORDS], people[k::3]) for k in range(3)]
    assert merge(parts) == merge(parts[::-1]) == sketch_of([NUMBER, WORDS], people)
    with pytest.raises(DataError, match="the sketches are of different variables"):
        merge([parts[0], sketch_of([NUMBER], people)])
    with pytest.raises(DataError, match="no sketch to merge"):
        merge([])


def test_what_is_released_stands_for_enough_patients() -> None:
    people = [{"age": float(x), "sex": "f" if x < 3 else "m"} for x in range(1, 22)]
    age, sex = released(sketch_of([NUMBER, WORDS], people), 5).columns
    assert sum(age.counts.values()) == 21
    assert min(age.counts.values()) >= 5
    assert (sex.withheld, sex.counts) == (True, {})
    one_missing = sketch_of([NUMBER], [*people, {"age": None}])
    assert released(one_missing, 5).columns[0].withheld
    hidden = Sketch(columns=[Column(variable=NUMBER, counts={}, withheld=True)])
    assert merge([sketch_of([NUMBER], people), hidden]).columns[0].withheld
