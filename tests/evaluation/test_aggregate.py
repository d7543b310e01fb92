"""Patients first, absence counted, small groups hidden: what stands in a row is what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.patients import SummarySettings

sys.path.insert(0, str(Path(__file__).parent))
from case_rows import class_rows, image_row


def rows_of(cases, **options):
    summary = aggregate(
        cases, SummarySettings(**{"round": 2, "seed": 1, "min_patients": 1, "draws": 200, **options})
    )
    return {(row.site, row.metric, row.structure): row for row in summary if row.split == "test"}


def test_a_patients_images_are_one_patient():
    cases = [image_row("a", 0.2, image=0), image_row("a", 0.4, image=1), image_row("b", 0.9)]
    row = rows_of(cases)["north", "dice", "lesion"]
    assert row.value == pytest.approx((0.3 + 0.9) / 2)
    assert row.n == 2


def test_ten_copies_of_each_patients_rows_leave_the_interval_as_it_was():
    values = np.random.default_rng(0).random(20)
    once = [image_row(str(i), float(v)) for i, v in enumerate(values)]
    tenfold = [image_row(str(i), float(v), image=k) for i, v in enumerate(values) for k in range(10)]
    first, second = (rows_of(some)["north", "dice", "lesion"] for some in (once, tenfold))
    assert (first.low, first.high, first.n) == pytest.approx((second.low, second.high, second.n))


def three():
    """A missed, a perfect and an invented structure: the mean HD95 that MONAI calls 0.0 mm."""
    outcomes = [("a", 0.0, None, "missed"), ("b", 1.0, 0.0, None), ("c", 0.0, None, "false positive")]
    return [image_row(p, dice, note=note) for p, dice, _, note in outcomes] + [
        image_row(p, hd95, "hd95_mm", note=note) for p, _, hd95, note in outcomes
    ]


def test_a_perfect_mean_distance_never_stands_without_what_was_left_out():
    rows = rows_of(three())
    hd95 = rows["north", "hd95_mm", "lesion"]
    assert (hd95.value, hd95.n) == (0.0, 1)
    assert "1 missed left out; 1 without the structure left out (1 of them invented)" in hd95.note
    assert rows["north", "hd95_median_mm", "lesion"].value is None
    assert (
        "2 of 3 missed or invented: the median is infinite" in rows["north", "hd95_median_mm", "lesion"].note
    )
    assert rows["north", "dice", "lesion"].value == pytest.approx(1 / 2)
    assert (
        "1 missed counted as 0; 1 without the structure left out (1 of them invented)"
        in rows["north", "dice", "lesion"].note
    )
    assert rows["north", "missed", "lesion"].value == 1.0
    assert rows["north", "invented", "lesion"].value == 1.0


def test_absent_in_both_is_counted_and_neither_0_nor_1():
    cases = [image_row("a", None, note="absent in both"), image_row("b", 0.5)]
    rows = rows_of(cases)
    assert (rows["north", "dice", "lesion"].value, rows["north", "dice", "lesion"].n) == (0.5, 1)
    assert rows["north", "absent", "lesion"].value == 1.0


def test_structures_are_averaged_within_the_patient():
    cases = [
        image_row("a", 0.2, structure="liver"),
        image_row("a", 0.6, structure="tumour"),
        image_row("b", 0.9, structure="liver"),
        image_row("b", None, structure="tumour", note="absent in both"),
    ]
    assert rows_of(cases)["north", "dice", None].value == pytest.approx((0.4 + 0.9) / 2)


def test_bland_altman_by_hand():
    differences = (-1.0, 0.0, 4.0, -1.0, 0.0, 4.0, -1.0, 0.0, 4.0, 1.0)
    cases = [image_row(str(i), v, "volume_difference_ml") for i, v in enumerate(differences)]
    rows = rows_of(cases)
    deviation = np.std(differences, ddof=1)
    assert rows["north", "volume_difference_ml", "lesion"].value == pytest.approx(1.0)
    assert rows["north", "volume_limit_high_ml", "lesion"].value == pytest.approx(1 + 1.96 * deviation)
    assert rows["north", "volume_limit_low_ml", "lesion"].low == pytest.approx(
        1 - 1.96 * deviation - 1.96 * deviation * np.sqrt(3 / 10)
    )
    assert ("north", "volume_limit_low_ml", "lesion") not in rows_of(cases[:9])


def test_hospitals_are_pooled_without_the_one_that_took_no_part():
    cases = [
        image_row(f"{s}{i}", v, site=s)
        for s, v in (("north", 0.2), ("south", 0.6), ("west", 1.0))
        for i in range(4)
    ]
    rows = rows_of(cases, held_out=["west"])
    assert rows["all", "dice", "lesion"].value == pytest.approx(0.4)
    assert rows["all", "patients", None].value == 8
    assert rows["west", "dice", "lesion"].value == 1.0


def test_a_small_hospital_is_hidden_with_another_one():
    sizes = {"north": 9, "south": 3, "east": 7}
    cases = [image_row(f"{s}{i}", 0.5 + i / 100, site=s) for s, n in sizes.items() for i in range(n)]
    rows = rows_of(cases, min_patients=5)
    assert rows["south", "patients", None].value is None
    assert rows["south", "patients", None].n is None
    assert rows["east", "patients", None].value is None
    assert ("south", "dice", "lesion") not in rows
    assert ("east", "dice", "lesion") not in rows
    assert rows["north", "dice", "lesion"].n == 9
    assert rows["all", "dice", "lesion"].n == 19


def test_probabilities_of_a_patients_images_are_averaged_and_the_threshold_comes_from_validation():
    cases = [row for i in range(6) for row in class_rows(f"v{i}", 0.1 + 0.1 * i, i >= 3, split="val")]
    cases += class_rows("a", 0.2, True, image=0) + class_rows("a", 0.8, True, image=1)
    cases += class_rows("b", 0.1, False) + class_rows("c", 0.46, True) + class_rows("d", 0.44, False)
    rows = rows_of(cases, classes=["healthy", "disease"])
    # Validation separates at 0.35: the mean of a (0.5) and c are above, b below, d above too.
    assert rows["north", "sensitivity", None].value == 1.0
    assert rows["north", "specificity", None].value == 0.5
    assert (
        "threshold 0.35, Youden index on 6 validation patients" in rows["north", "sensitivity", None].method
    )
    assert rows["north", "auroc", None].value == 1.0
    assert rows["north", "auroc", None].n == 4


def test_one_class_is_null_with_a_reason():
    cases = [row for i in range(6) for row in class_rows(f"p{i}", 0.1 * i, False)]
    row = rows_of(cases, classes=["healthy", "disease"])["north", "auroc", None]
    assert row.value is None
    assert "fewer than 1 patients with or without" in row.note


def test_a_rare_outcome_is_not_shown():
    cases = [row for i in range(12) for row in class_rows(f"p{i}", 0.05 * i, i > 9)]
    rows = rows_of(cases, classes=["healthy", "disease"], min_patients=5)
    for metric in ("auroc", "sensitivity", "specificity", "prevalence", "ppv"):
        assert rows["north", metric, None].value is None
    assert rows["north", "brier", None].value is not None
    assert not any("2 of" in (row.method or "") for row in rows.values())


def test_survival_rows():
    generator = np.random.default_rng(0)
    cases = [
        image_row(
            str(i),
            float(r),
            "risk",
            structure=None,
            target=float(generator.exponential(np.exp(-r)) + 0.01),
            event=True,
        )
        for i, r in enumerate(generator.normal(0, 1, 40))
    ]
    assert rows_of(cases)["north", "c_index", None].value > 0.6
    assert (rows_of(cases)["north", "events", None].value, rows_of(cases)["north", "events", None].n) == (
        40,
        40,
    )
    alive = [msgspec.structs.replace(row, event=i > 2) for i, row in enumerate(cases)]
    assert rows_of(alive, min_patients=3)["north", "events", None].value == 37
    told = rows_of(alive, min_patients=4)["north", "events", None]
    assert (told.value, told.note) == (None, "fewer than 4 without an event")
    assert rows_of(cases, min_patients=41)["north", "patients", None].value is None


def test_the_order_of_cases_changes_nothing():
    cases = [
        image_row(f"{s}{i}", float(v), site=s)
        for s in "ab"
        for i, v in enumerate(np.random.default_rng(3).random(9))
    ]
    assert rows_of(cases) == rows_of(cases[::-1])


def test_a_structure_missed_in_each_of_a_patients_images_is_one_patient():
    cases = [image_row("a", 0.0, image=k, note="missed") for k in range(3)] + [image_row("b", 0.8)]
    row = rows_of(cases)["north", "missed", "lesion"]
    assert (row.value, row.n) == (1.0, 2)


def test_a_structure_that_a_hospital_never_draws_is_no_dice_of_0():
    """south draws no lesion: its inventions are its specificity, and the pooled Dice is north's."""
    cases = [image_row(f"n{i}", 0.8) for i in range(6)]
    cases += [image_row(f"s{i}", 0.0, site="south", note="false positive") for i in range(4)]
    cases += [image_row(f"s{i}", None, site="south", note="absent in both") for i in range(4, 6)]
    rows = rows_of(cases)
    assert rows["south", "dice", "lesion"].value is None
    assert "6 without the structure left out (4 of them invented)" in rows["south", "dice", "lesion"].note
    assert (rows["all", "dice", "lesion"].value, rows["all", "dice", "lesion"].n) == (pytest.approx(0.8), 6)
    empty = rows["south", "rightly_empty", "lesion"]
    assert (empty.value, empty.n, empty.method) == (pytest.approx(2 / 6), 6, "Wilson")
    # Wilson (1927) for 2 of 6, by hand: centre (1/3 + z2/12) / (1 + z2/6), z2 = 3.8415.
    assert (empty.low, empty.high) == pytest.approx((0.0968, 0.7000), abs=1e-3)
    assert (rows["south", "invented", "lesion"].value, rows["south", "absent", "lesion"].value) == (4.0, 2.0)


def test_a_specificity_of_too_few_patients_is_withheld():
    cases = [image_row(f"n{i}", 0.8) for i in range(8)]
    cases += [image_row(f"e{i}", None, note="absent in both") for i in range(2)]
    row = rows_of(cases, min_patients=5)["north", "rightly_empty", "lesion"]
    assert (row.value, row.low, row.high, row.note) == (None, None, None, "fewer than 5 patients")
