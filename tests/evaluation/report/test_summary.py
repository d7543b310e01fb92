"""The clinician's page: each sentence follows from rows, and an undecided difference is no conclusion."""

from __future__ import annotations

import pytest

from medfed.evaluation.report.focus import focus_of
from medfed.evaluation.report.summary import summary
from medfed.runs.facts import ModelChoice, RunFacts
from medfed.runs.rounds import RoundLine

from .result_rows import result, run_of

LINES = [RoundLine(1, "north", "merged"), RoundLine(1, "south", "merged")]


def page_of(*rows, study=None, rounds=LINES, **facts):
    run = run_of(RunFacts(**{"task": "segment", **facts}), study, rows, rounds)
    return summary(run, focus_of(run))


def test_it_says_what_was_asked_on_whom_and_the_answer():
    page = page_of(
        result(0.68, site="west", structure="lesion", low=0.59, high=0.78, n=12),
        result(16.0, site="west", metric="patients", n=16),
        result(2.0, site="west", metric="missed", structure="lesion", n=16),
        result(
            0.25,
            site="west",
            metric="rightly_empty",
            structure="lesion",
            low=0.05,
            high=0.7,
            n=4,
            method="Wilson",
        ),
        held_out=["west"],
    )
    assert page["asked"] == (
        "Can one model outline “lesion” at each of these hospitals, if no image leaves its hospital?"
    )
    assert page["whom"] == [
        "Trained at north, south.",
        "Tested at west, which took no part in training: 16 patients, 12 of them with “lesion”.",
    ]
    assert page["answer"] == ["0.68 (0.59 to 0.78) in 12"]
    assert dict(page["counts"]) == {
        "patients in whom “lesion” was missed altogether": ["2 of 12"],
        "patients without “lesion” rightly left empty": ["0.25 (0.05 to 0.70), 1 of 4"],
    }


def test_a_difference_that_may_be_chance_is_no_conclusion():
    page = page_of(
        result(0.7, low=0.6, high=0.8),
        result(0.5, model="local:north"),
        result(0.2, against="local:north", low=0.1, high=0.3),
        result(0.6, model="local:south"),
        result(0.1, against="local:south", low=-0.05, high=0.2),
        result(0.8, model="pooled"),
        result(-0.1, against="pooled", low=-0.2, high=-0.01),
    )
    assert page["may"] == [
        "In patients like those tested at north, expect a mean Dice of 0.60 to 0.80; single patients differ "
        "more.",
        "On the same patients it was better than north's own model (Dice +0.100 to +0.300).",
        "On the same patients it was worse than a model of all data in one place (Dice −0.200 to −0.010).",
    ]
    assert page["may_not"] == [
        "That it is better or worse than south's own model: the difference may be chance.",
        "That it works at a hospital that took no part: none was tested.",
        "That using it helps or is safe: no decision was made with it. It is no medical device.",
    ]


def test_the_metric_is_said_in_words_and_chance_is_no_finding():
    page = page_of(
        result(0.54, metric="auroc", low=0.21, high=0.84), task="classify", classes=["healthy", "lesion"]
    )
    assert page["meaning"] == (
        "Of two patients, one with “lesion” and one without, it gives the one with it the higher risk in "
        "about 54 of 100 such pairs; a coin's toss is right in 50."
    )
    said = "That it tells patients apart at all: the interval is not above 0.50, a coin's toss."
    assert said in page["may_not"]
    better = page_of(result(0.8, metric="c_index", low=0.51, high=0.9), task="survival")
    assert "names the one with the earlier event in about 80 of 100 such pairs" in better["meaning"]
    assert not any("coin" in text for text in better["may_not"])
    assert page_of(result(0.7))["meaning"] == (
        "Dice: overlap of the predicted and the reference outline; 1 is the same, 0 is none."
    )


def test_each_of_several_structures_has_its_own_line():
    """A mean over structures hides the one that fails."""
    page = page_of(
        result(0.5, n=9),
        result(0.9, structure="liver", n=9),
        result(0.1, structure="lesion", low=0.05, high=0.2, n=8),
        result(5.0, structure="lesion", metric="missed", n=9),
    )
    assert page["counts"] == [
        ("lesion: Dice", ["0.10 (0.05 to 0.20) in 8"]),
        ("lesion: patients in whom it was missed altogether", ["5 of 8"]),
        ("liver: Dice", ["0.90 in 9"]),
    ]


def test_what_a_hospital_may_rely_on_stands_there_too():
    rows = [
        result(0.7),
        result(0.31, metric="guarantee_found", split="val", structure="lesion"),
        result(None, metric="guarantee_covered", split="val", structure="lesion", note="no guarantee: few"),
    ]
    study = {"evaluation": {"guarantee": 0.9, "confidence": 0.95}}
    assert page_of(*rows, study=study)["may"] == [
        "In at least 90 % of patients with lesion it is found, with 95 % confidence, at north at a "
        "threshold of 0.31."
    ]


def test_patients_that_chose_the_model_are_not_taken_for_new_ones():
    page = page_of(result(0.7, split="val"))
    assert "That it does as well in new patients: these were seen while it was chosen." in page["may_not"]


def test_without_a_result_there_is_no_page():
    assert page_of(result(None)) is None


def test_many_comparisons_decide_by_holm_and_not_by_one_interval():
    versus = result(0.2, against="local:north", low=0.01, high=0.4, p=0.04, p_holm=0.16)
    page = page_of(result(0.7), result(0.5, model="local:north"), versus)
    assert page["may"] == []
    said = "That it is better or worse than north's own model: the difference may be chance."
    assert page["may_not"][0] == said


def test_an_auroc_is_no_mean_over_patients():
    rows = [
        result(0.8, metric="auroc", low=0.7, high=0.9),
        result(
            0.85,
            metric="sensitivity",
            low=0.76,
            high=0.91,
            method="Wilson; threshold 0.428, Youden index on 94 validation patients; 73 of 86",
        ),
        result(0.6, metric="specificity", low=0.5, high=0.7),
    ]
    page = page_of(*rows, task="classify", classes=["healthy", "disease"])
    assert page["asked"].startswith("Can one model tell “disease” from “healthy” at each of these hospitals")
    assert page["may"] == ["In patients like those tested at north, expect an AUROC of 0.70 to 0.90."]
    assert page["counts"] == [
        ("sensitivity, of patients with “disease”", ["0.85 (0.76 to 0.91), 73 of 86"]),
        ("specificity, of patients without “disease”", ["0.60 (0.50 to 0.70)"]),
    ]
    assert page["threshold"] == (
        "Sensitivity and specificity are at a threshold of 0.428 (Youden index on 94 validation patients)."
    )
    assert page_of(rows[0])["threshold"] == ""


def test_thresholds_say_nothing_of_false_alarms_and_less_where_their_patients_chose_the_model():
    kept = result(0.3, site="each hospital", metric="guarantee_found", split="val", structure="lesion")
    study = {"evaluation": {"guarantee": 0.9, "confidence": 0.95}}
    alarms = "That false alarms are rare at these thresholds: of them nothing is guaranteed."
    chosen = "That these thresholds hold quite as often as stated: the same patients chose the model."
    dice = result(0.7, structure="lesion", low=0.6, high=0.8)
    plain = page_of(dice, kept, study=study)["may_not"]
    assert (alarms in plain, chosen in plain) == (True, False)
    best = ModelChoice(round=3, merged=5, rounds=5, keep="best", best=3)
    assert {alarms, chosen} <= set(page_of(dice, kept, study=study, chosen=best)["may_not"])
    assert alarms not in page_of(dice, study=study)["may_not"]


@pytest.mark.parametrize(
    ("task", "classes", "asked"),
    [
        ("classify", ["a", "b", "c"], "tell “a”, “b” and “c” apart"),
        ("classify", list("abcdef"), "tell “a”, “b”, “c”, “d” and 2 more apart"),
        ("multilabel", ["a", "{b}"], "tell who has “a” and “{b}”"),
        ("tabular", [], "tell who has it"),
        ("survival", [], "rank patients by their risk of “died”"),
    ],
)
def test_classes_are_names_of_others_in_quotes(task, classes, asked):
    study = {"data": {"event": "died"}}
    page = page_of(result(0.8, metric="auroc", low=0.7, high=0.9), task=task, classes=classes, study=study)
    assert page["asked"] == f"Can one model {asked} at each of these hospitals, if no data leave them?"


def test_over_several_findings_no_single_one_is_named():
    rows = [result(0.8, metric="auroc"), result(0.7, metric="sensitivity")]
    page = page_of(*rows, task="multilabel", classes=["a", "b", "c"])
    assert page["counts"] == [("sensitivity, of patients with it", ["0.70"])]


def test_an_interval_of_few_patients_has_a_dagger_and_is_said_to_be_too_narrow():
    narrow = result(0.76, low=0.69, high=0.83, n=8, note="of 8 patients, so likely too narrow")
    page = page_of(narrow)
    assert page["answer"] == ["0.76 (0.69 to 0.83)† in 8"]
    said = "That the interval is wide enough: from 8 patients it is likely too narrow (†)."
    assert page["may_not"][0] == said
    assert said not in page_of(result(0.76, low=0.69, high=0.83, n=12))["may_not"]


def test_a_permutation_and_an_interval_that_disagree_decide_nothing():
    rows = [result(0.7), result(0.5, model="local:north")]
    page = page_of(*rows, result(0.2, against="local:north", low=-0.01, high=0.4, p=0.01, p_holm=0.04))
    assert page["may"] == []
    page = page_of(*rows, result(0.2, against="local:north", low=0.01, high=0.4, p=0.01, p_holm=0.04))
    assert page["may"] == [
        "On the same patients it was better than north's own model (Dice +0.010 to +0.400)."
    ]


def test_the_event_that_was_predicted_has_its_name():
    rows = [result(0.8, metric="c_index"), result(9, metric="events", n=20)]
    page = page_of(*rows, task="survival", study={"data": {"event": "died"}})
    assert page["counts"] == [("events (“died”)", ["9 of 20"])]
