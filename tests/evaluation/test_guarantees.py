"""Hospitals have guaranteed thresholds of their validation patients, held or not on test patients."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from medfed.evaluation.guarantees import Level, guarantees, least_of_reported, patient_scores
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.rows import Row

sys.path.insert(0, str(Path(__file__).parent))
from case_rows import class_rows, image_row

LEVEL = Level(0.9, 0.95)
SETTINGS = SummarySettings(round=1, seed=0, classes=("healthy", "disease"), held_out=("west",))


def found(site, scores, split="val", **more):
    return [
        image_row(f"{site}{split}{n}", score, "found", site=site, split=split, **more)
        for n, score in enumerate(scores)
    ]


def rows_of(cases=(), scores=(), level=LEVEL, settings=SETTINGS):
    rows = guarantees(cases, scores, settings, level)
    return {(row.site, row.metric, row.structure): row for row in rows}


def test_each_hospital_has_its_own_the_pooled_one_and_the_least():
    """Of 30 patients none may fail, of 60 one: P(Bin(60, 0.1) <= 1) is 0.014, <= 2 is 0.053."""
    scores = found("north", np.linspace(0.605, 0.905, 30)) + found("south", np.linspace(0.305, 0.605, 30))
    scores += found("north", [0.7, 0.59], "test", image=1) * 1
    rows = rows_of(scores=scores)
    assert rows["north", "guarantee_found", "lesion"].value == 0.60
    assert rows["south", "guarantee_found", "lesion"].value == 0.30
    pooled, least = (rows[site, "guarantee_found", "lesion"] for site in ("all", "each hospital"))
    # The second least of all scores is 0.305 + 0.3 / 29.
    assert (pooled.value, pooled.n) == (0.31, 60)
    assert (least.value, least.n) == (0.30, 60)
    assert "Learn then Test" in pooled.method


def test_what_held_on_test_patients_is_a_proportion_with_its_interval():
    scores = found("north", [0.5] * 30) + found("north", [0.9] * 8 + [0.2] * 2, "test")
    row = rows_of(scores=scores)["north", "held_found", "lesion"]
    assert (row.split, row.value, row.n) == ("test", 0.8, 10)
    assert "threshold 0.5" in row.method
    few = found("north", [0.5] * 30) + found("north", [0.9] * 3, "test")
    assert rows_of(scores=few)["north", "held_found", "lesion"].note == "fewer than 5 patients"


def test_too_few_patients_are_told_how_many_are_needed_and_their_number_only_if_it_may_be_shown():
    rows = rows_of(scores=found("north", [0.5] * 12) + found("south", [0.5] * 3))
    north, south = (rows[site, "guarantee_found", "lesion"] for site in ("north", "south"))
    assert (north.value, north.n) == (None, 12)
    assert north.note == ("no guarantee: 12 validation patients, 29 are needed for 90 % with 95 % confidence")
    assert (south.n, south.note.startswith("no guarantee: fewer than 5 validation patients, 29 are")) == (
        None,
        True,
    )
    assert "12" not in south.note
    assert rows["each hospital", "guarantee_found", "lesion"].note == (
        "no guarantee: 2 of 2 hospitals have none"
    )


def test_a_patients_worst_image_counts_and_a_hospital_that_took_no_part_has_none():
    scores = [image_row("a", value, "found", image=n, split="val") for n, value in enumerate((0.9, 0.2))]
    assert patient_scores(scores, SETTINGS) == {("found", "lesion"): [0.2]}
    assert rows_of(scores=found("west", [0.5] * 40)) == {}


def test_of_two_classes_the_sensitivity_is_of_the_second_and_sets_are_of_both():
    cases = [row for n in range(40) for row in class_rows(f"p{n}", 0.805, True, split="val")]
    cases += [row for n in range(20) for row in class_rows(f"h{n}", 0.305, False, split="val")]
    rows = rows_of(cases)
    assert (
        rows["north", "guarantee_sensitivity", None].value,
        rows["north", "guarantee_sensitivity", None].n,
    ) == (
        0.80,
        40,
    )
    # On average 5 of 60 may lack the true class, so those at 0.695 may not.
    assert (rows["north", "guarantee_set", None].value, rows["north", "guarantee_set", None].n) == (0.69, 60)
    assert "conformal risk control" in rows["north", "guarantee_set", None].method


@pytest.mark.parametrize("present", [True, False])
def test_of_several_findings_only_labelled_ones_count(present):
    def finding(n, target):
        return image_row(f"p{n}", 0.5, "finding", split="val", structure="disease", target=target)

    cases = [finding(n, 1.0) for n in range(30)] + [
        finding(n, 0.0 if present else None) for n in range(30, 35)
    ]
    cases += [image_row(f"p{n}", 0.4, "finding", split="val", structure="healthy") for n in range(35)]
    row = rows_of(cases)["north", "guarantee_sensitivity", "disease"]
    assert (row.value, row.n) == (0.5, 30)


def test_a_hub_takes_the_least_threshold_that_it_was_sent_if_each_hospital_sent_one():
    def sent(site, value):
        about = {"round": 3, "split": "val", "model": "federated", "metric": "guarantee_found"}
        return Row(**about, site=site, structure="lesion", value=value, n=40)

    reported = [sent("north", 0.4), sent("south", 0.3), sent("west", 0.1)]
    (least,) = least_of_reported(reported, ["north", "south"])
    assert (least.site, least.value, least.n, least.structure) == ("each hospital", 0.3, 80, "lesion")
    (none,) = least_of_reported(reported[:1], ["north", "south"])
    assert (none.value, none.note) == (None, "no guarantee: 1 of 2 hospitals have none")
    assert least_of_reported([], ["north", "south"]) == []
