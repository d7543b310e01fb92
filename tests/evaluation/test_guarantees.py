"""Hospitals have guaranteed thresholds of their validation patients, held or not on test patients."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from medfed.evaluation.conformal import CUTS
from medfed.evaluation.guarantees import (
    Level,
    guarantees,
    own_guarantee,
    patient_losses,
    patient_scores,
    reported_guarantees,
)
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.row_checks import StudyMeasures
from medfed.evaluation.row_transport import accept_rows, scalars_of

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
    # The second least of all scores is 0.305 + 0.3 / 29; of cells of five or more the first ends above it.
    assert (pooled.value, pooled.n) == (0.30, 60)
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
    # On average 5 of 60 may lack the true class, so those at 0.695 may not; the cut below is 0.65.
    assert (rows["north", "guarantee_set", None].value, rows["north", "guarantee_set", None].n) == (0.65, 60)
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


def test_a_hub_makes_the_thresholds_of_the_curves_that_hospitals_sent():
    """North's least score is 0.605 and south's 0.305; of both together one may fail, none does at 0.30."""
    scores = found("north", np.linspace(0.605, 0.905, 30)) + found("south", np.linspace(0.305, 0.605, 30))
    whole = guarantees((), scores, SETTINGS, LEVEL)
    sent = [msgspec.structs.replace(row, method=None) for row in whole if row.metric.startswith("risk_")]
    assert len(sent) == 2 * len(CUTS)
    made = reported_guarantees(sent, ["north", "south"], SETTINGS, LEVEL)
    assert made == [row for row in whole if not row.metric.startswith("risk_")]
    lying = [
        msgspec.structs.replace(row, value=0.5) if row.metric == "risk_found@0.01" else row for row in sent
    ]
    by = {row.site: row for row in reported_guarantees(lying, ["north", "south"], SETTINGS, LEVEL)}
    assert by["north"].note == "no guarantee: the curve that this hospital sent contradicts itself"
    alone = reported_guarantees([r for r in sent if r.site == "north"], ["north", "south"], SETTINGS, LEVEL)
    least = {row.site: row for row in alone}["each hospital"]
    assert (least.value, least.note) == (None, "no guarantee: 1 of 2 hospitals have none")
    assert reported_guarantees([], ["north", "south"], SETTINGS, LEVEL) == []


def test_of_too_few_patients_it_is_not_told_how_many_fail():
    """With a share of .5 and a confidence of .5 one patient would do; both of north's fail."""
    rows = rows_of(scores=found("north", [0.0] * 2) + found("south", [0.0] * 2), level=Level(0.5, 0.5))
    assert rows["north", "guarantee_found", "lesion"].note == (
        "no guarantee: fewer than 5 validation patients, which is too few"
    )
    pooled = rows["all", "guarantee_found", "lesion"]
    assert (pooled.n, pooled.note) == (0, "no guarantee: no hospital has enough validation patients")


def test_points_of_a_curve_are_shares_of_at_least_the_smallest_group():
    scores = found("north", [0.11, 0.12, 0.13, 0.63, *[0.97] * 26])
    rows = rows_of(scores=scores, settings=msgspec.structs.replace(SETTINGS, min_patients=3))
    assert rows["north", "risk_found@0.1", "lesion"].value == 0.0
    assert rows["north", "risk_found@0.2", "lesion"].value == pytest.approx(3 / 30)
    assert rows["north", "risk_found@0.9", "lesion"].value == 1.0
    assert not any(metric.startswith("risk_") for _, metric, _ in rows_of(scores=found("north", [0.5] * 4)))


def test_the_hospitals_own_threshold_is_finer_and_of_its_own_patients():
    """Of 61 patients two may fail, so it is the third least score, in hundredths."""
    scores = found("north", [0.101, 0.202, 0.303, *np.linspace(0.5, 0.99, 58)])
    own = own_guarantee((), scores, SETTINGS, LEVEL, ("found", "lesion"))
    assert (own.threshold, own.patients, own.failures) == (0.30, 61, 2)
    # What leaves has a cell of five or more patients from 0.10 on.
    assert rows_of(scores=scores)["north", "guarantee_found", "lesion"].value == 0.1
    assert own_guarantee((), (), SETTINGS, LEVEL, ("found", "lesion")).threshold is None


def missed(patient, shares, image=0, split="val"):
    return [
        image_row(patient, share, f"missed@{at:g}", image=image, split=split) for at, share in shares.items()
    ]


def test_of_voxels_the_expected_share_missed_is_guaranteed():
    """Each of 40 patients misses 5 % from 0.2 on and 20 % from 0.6 on: (40 * .05 + 1) / 41 is .073."""
    cases = [row for n in range(40) for row in missed(f"p{n}", {0.01: 0.0, 0.2: 0.05, 0.6: 0.2})]
    tested = [row for n in range(10) for row in missed(f"t{n}", {0.01: 0.0, 0.3: n / 50}, split="test")]
    rows = rows_of(scores=cases + tested)
    assert rows["north", "guarantee_voxels", "lesion"].value == 0.55
    assert rows["north", "risk_voxels@0.5", "lesion"].value == 0.05
    held = rows["north", "held_voxels", "lesion"]
    assert (held.value, held.n) == (pytest.approx(1 - 0.09), 10)
    own = own_guarantee((), cases, SETTINGS, LEVEL, ("voxels", "lesion"))
    assert own.threshold == 0.59


def test_a_patient_who_misses_no_voxel_counts_and_several_images_are_averaged():
    rows = missed("a", {0.01: 0.0}) + missed("b", {0.01: 0.2}) + missed("b", {0.01: 0.0, 0.5: 0.4}, image=1)
    (losses,) = patient_losses(rows, SETTINGS).values()
    assert losses[:, 0].tolist() == [0.0, 0.1]
    assert losses[:, 98].tolist() == [0.0, pytest.approx(0.3)]


def test_curves_cross_the_wire_and_thresholds_do_not():
    scores = found("north", np.linspace(0.605, 0.905, 30))
    rows = guarantees((), scores, SETTINGS, LEVEL)
    scalars = scalars_of(rows)
    assert {name.split("/")[3].partition("@")[0] for name in scalars} == {"risk_found"}
    accepted, refused = accept_rows(scalars, 1, "north", 100, StudyMeasures("segment", "segment"))
    assert (len(accepted), refused) == (len(CUTS), [])
    (own,) = reported_guarantees(accepted, ["north"], SETTINGS, LEVEL)
    assert own.value == 0.60
    lie = {f"row/val/federated/guarantee_found/lesion//{field}": 0.9 for field in ("value", "n")}
    taken, why = accept_rows(
        {**lie, "row/val/federated/guarantee_found/lesion//n": 30.0}, 1, "north", 100, None
    )
    assert taken == []
    assert "depends on a hospital's own data" in why[0]
