"""What in a table may mean something else than it says: stand-ins, constants, ids, rows in two splits."""

from __future__ import annotations

import numpy as np

from medfed.data.table_findings import (
    count_of_rows,
    duplicate_findings,
    identifier_findings,
    number_findings,
    stand_ins,
)


def test_stand_ins_by_hand() -> None:
    blood_pressure = np.array([*range(80, 180), 0, 0, 999], float)
    assert stand_ins(blood_pressure) == [(0.0, 2), (999.0, 1)]
    # Counts from 0, a value that is among the others, a code.
    assert stand_ins(np.array([*range(30)] * 3, float)) == []
    assert stand_ins(np.array([*range(-20, 30), -1, -1], float)) == []
    assert stand_ins(np.array([1, 2, 3, 9] * 20, float)) == []
    # A doubling: 0 is near to the small ones.
    assert stand_ins(np.array([0, *(2.0**n for n in range(15))])) == []


def test_one_value_for_all_is_said() -> None:
    (finding,) = number_findings("chol", np.zeros(123))
    assert "one value in all rows" in finding
    assert "data.missing_values.chol" in finding
    (few,) = number_findings("bp", np.array([*range(80, 180), 0.0]))
    assert "fewer than 5 rows" in few


def test_short_ids_drawn_by_lot_are_asked_about_and_measurements_are_not() -> None:
    generator = np.random.default_rng(3)
    (result,) = number_findings("key", generator.permutation(np.arange(1000, 10_000))[:150].astype(float))
    assert "whole numbers of 4 digits, spread evenly" in result
    (result,) = number_findings("key", generator.permutation(np.arange(100, 1000))[:120].astype(float))
    assert "whole numbers of 3 digits, spread evenly" in result
    # Birth weights in g and brain volumes in ml heap up; too few rows, and values that many rows share.
    assert number_findings("weight", np.rint(generator.normal(3400, 500, 150))) == []
    assert number_findings("brain", np.rint(generator.normal(1400, 130, 150))) == []
    assert number_findings("key", generator.permutation(np.arange(1000, 10_000))[:40].astype(float)) == []
    assert number_findings("bed", np.repeat(np.arange(100, 200), 3).astype(float)) == []


def test_equal_rows_in_two_splits_are_counted() -> None:
    rows = np.array([[1.0, np.nan, 0], [2, 5, 1], [1, np.nan, 0], [2, 5, 0], [1, np.nan, 0]])
    (finding,) = duplicate_findings(rows, ["train", "train", "test", "test", "test"])
    assert finding.startswith("fewer than 5 rows of the test split (it has 3) equal a training row")
    many = np.repeat(rows[:1], 12, axis=0)
    (finding,) = duplicate_findings(many, ["train"] * 6 + ["val"] * 6)
    assert finding.startswith("6 rows of the val split (it has 6)")
    assert duplicate_findings(rows[:2], ["train", "test"]) == []


def test_counts_of_fewer_than_five_rows_are_not_told() -> None:
    assert [count_of_rows(count) for count in (1, 4, 5, 123)] == [
        "fewer than 5 rows", "fewer than 5 rows", "5 rows", "123 rows",
    ]  # fmt: skip


def test_a_feature_whose_numbers_look_like_ids_is_named_without_a_cell() -> None:
    ids = [str(4_711_000 + 13 * row) for row in range(40)]
    (finding,) = identifier_findings({"age": [str(40 + row % 9) for row in range(40)], "key": [*ids, "NA"]})
    assert finding.startswith("column 'key' looks like ids or dates: nearly every row has a value of its own")
    assert "4711" not in finding
