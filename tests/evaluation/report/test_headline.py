"""The report's first sentence, word by word."""

from __future__ import annotations

import pytest

from medfed.evaluation.report.focus import focus_of
from medfed.evaluation.report.headline import headline, sentence
from medfed.evaluation.rows import write
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder

from .result_rows import result, run_of


def words(*rows, **facts):
    run = run_of(RunFacts(**facts), rows=rows)
    return sentence(run, focus_of(run)).text


def test_it_gives_value_interval_hospital_and_patients():
    row = result(0.812, low=0.75, high=0.87)
    assert words(row) == "Federated model: Dice 0.81 (95 % CI 0.75 to 0.87) at north, in 10 patients."
    west = result(0.812, site="west", n=1)
    assert words(west, held_out=["west"]) == (
        "Federated model: Dice 0.81 at west, a hospital that took no part in training, in 1 patient."
    )
    assert words(result(0.812, site="all", split="val")) == (
        "Federated model: Dice 0.81 over all hospitals of the study, in 10 patients, validation split."
    )


def test_a_narrow_interval_has_three_decimals():
    assert "Dice 0.812 (95 % CI 0.800 to 0.824)" in words(result(0.812, low=0.8, high=0.824))


def test_a_structure_is_named_where_there_are_several():
    liver = result(0.9, structure="liver")
    assert " for liver" not in words(liver)
    assert words(liver, result(0.7, structure="tumour")).startswith("Federated model: Dice 0.90 for liver at")


def test_the_number_of_events_is_given_with_the_patients():
    risk = result(0.7, metric="c_index")
    events = result(1.0, metric="events")
    assert words(risk, events) == "Federated model: c-index 0.70 at north, in 10 patients with 1 event."
    assert "10 patients with 4 events." in words(risk, result(4.0, metric="events"))


def test_it_compares_with_the_best_single_hospital():
    ours, worse, best = result(0.8), result(0.5, model="local:north"), result(0.7, model="local:south")
    versus = result(0.1, against="local:south", low=0.02, high=0.18, p=0.0004)
    assert words(ours, worse, best, versus).endswith(
        "The best model that a single hospital trained alone reaches 0.70; the difference, paired by "
        "patient, is +0.100 (95 % CI +0.020 to +0.180), p < 0.001."
    )
    assert words(ours, worse).endswith("trained alone reaches 0.50.")


def test_a_mean_over_other_patients_is_not_given_as_it_would_not_subtract():
    versus = result(0.1, against="local:south", n=9, p=0.002, p_holm=0.008)
    assert words(result(0.8), result(0.7, model="local:south", n=9), versus).endswith(
        "in 10 patients. Against the best model that a single hospital trained alone the difference, in the "
        "9 patients in whom either has a value, is +0.100, p = 0.002 (0.008 after Holm's correction)."
    )


def test_patients_without_the_structure_are_told():
    counted = result(16.0, metric="patients", n=16)
    empty = result(0.75, metric="rightly_empty", structure="lesion", n=4)
    assert words(result(0.8, n=12, structure="lesion"), counted, empty) == (
        "Federated model: Dice 0.80 at north, in 16 patients, 12 with lesion, 3 of 4 without rightly left "
        "empty."
    )


def test_where_nobody_has_the_structure_the_headline_is_the_specificity(tmp_path):
    rows = [
        result(12.0, metric="patients", n=12),
        result(None, structure="lesion", n=0, note="12 without the structure left out"),
        result(10 / 12, metric="rightly_empty", structure="lesion", n=12),
    ]
    said = of_site(tmp_path, "north", rows)
    assert said.startswith(
        "Federated model: Rightly left empty 0.83 at north, in 12 patients without lesion. "
    )
    assert (
        "No patient at north has lesion in the reference, so there is no Dice; nothing was predicted in "
        in said
    )
    assert "10 of 12. If it is not drawn there, say what is" in said
    assert "Not shown" not in said


def test_the_mean_of_hospitals_stands_beside_the_mean_over_patients_or_alone():
    rows = [result(0.8, site="all", n=90), result(0.6, site="mean of hospitals", n=90), result(0.9, n=80)]
    assert words(*rows).endswith("in 90 patients; each hospital counting alike, 0.60.")
    assert words(*rows[1:]) == (
        "Federated model: Dice 0.60 as the mean of the study's hospitals, each counting alike, "
        "in 90 patients."
    )


def test_of_several_hospitals_that_took_no_part_the_largest_is_the_headline():
    rows = result(0.9, site="alpha", n=6), result(0.7, site="west", n=80)
    assert "Dice 0.70 at west" in words(*rows, held_out=["alpha", "west"])


def test_where_patients_trained_the_hospital_is_not_said_to_have_taken_no_part():
    text = words(result(0.7, site="west"), held_out=["west"], seen={"west": 4})
    assert "at west, in patients who took no part in training, in 10 patients" in text


def of_site(tmp_path, site, rows, **facts):
    folder = RunFolder(tmp_path)
    folder.write_facts(RunFacts(**facts))
    write(folder.rows, rows)
    return headline(tmp_path, site)


def test_evaluate_answers_about_the_hospital_that_was_evaluated(tmp_path):
    rows = [
        result(0.9, site="alpha", n=80),
        result(0.5, site="west"),
        result(None, site="west", metric="hd95_mm"),
    ]
    said = of_site(
        tmp_path,
        "west",
        rows,
        held_out=["alpha", "west"],
        seen={"west": 4},
        warnings={"west": ["4 are left out"]},
    )
    assert said == (
        "Federated model: Dice 0.50 at west, in patients who took no part in training, in 10 patients. "
        "Not shown at west: HD95 (fewer than 5 patients). 4 are left out."
    )


def test_a_metric_that_is_hidden_in_subgroups_alone_is_not_said_to_be_hidden(tmp_path):
    rows = [
        result(0.5, site="west"),
        result(None, site="west", group="sex=F"),
        result(None, site="west", group="sex=M"),
    ]
    said = of_site(tmp_path, "west", rows, held_out=["west"])
    assert said.endswith("Not shown at west: 2 results of subgroups.")


def test_where_nothing_may_be_shown_it_says_why(tmp_path):
    rows = [result(0.9, site="alpha"), result(None, site="west", metric="patients", n=None)]
    assert of_site(tmp_path, "west", rows, held_out=["alpha", "west"]) == (
        "No result at west may be shown: fewer than 5 patients. `cases.jsonl` has each patient's, and stays "
        "here."
    )


@pytest.mark.parametrize("rows", [[], [result(None)], [result(0.8, model="local:north")]])
def test_without_a_value_of_the_federated_model_it_says_so(rows):
    assert words(*rows) == "This run has no result of the federated model that may be shown."
