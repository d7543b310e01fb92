"""The limits of a run, each from the records that it follows from."""

from __future__ import annotations

import pytest

from medfed.evaluation.report.focus import focus_of
from medfed.evaluation.report.limits import limits, suppressed_values
from medfed.runs.facts import RunFacts
from medfed.runs.rounds import RoundLine

from .result_rows import result, run_of

NOT_HELD_OUT = "No hospital was held out: performance at a hospital that took no part is unknown."
LAST = "Nothing here shows benefit or safety in care. The model is not a medical device."


def limits_of(facts=None, rows=(), study=None, rounds=()):
    run = run_of(facts, study or {"privacy": {"kind": "dp_sgd"}}, rows, rounds)
    return limits(run, focus_of(run))


def test_every_report_ends_with_what_no_run_can_show():
    assert limits_of() == [NOT_HELD_OUT, LAST]


@pytest.mark.parametrize("study", [{"name": "x"}, {"privacy": {"kind": "none"}}, {"privacy": "none"}])
def test_a_study_without_privacy_says_so(study):
    assert limits_of(study=study)[1] == (
        "No privacy mechanism protected the updates: whoever receives one may learn about its patients."
    )


def test_held_out_hospitals_are_counted_with_their_patients():
    rows = [result(0.8, site=site, n=n) for site, n in (("west", 7), ("east", 5), ("north", 90))]
    assert limits_of(RunFacts(held_out=["west", "east"]), rows)[0] == (
        "It was tested at 2 hospitals that took no part, in 12 patients. "
        "So few hospitals cannot show how much results differ between hospitals."
    )
    rows.append(result(0.8, site="coast", n=3))
    assert limits_of(RunFacts(held_out=["west", "east", "coast"]), rows)[0] == (
        "It was tested at 3 hospitals that took no part, in 15 patients."
    )


def test_a_held_out_hospital_with_too_few_patients_is_none_that_it_was_tested_at():
    few = result(None, site="two", n=None, metric="patients", note="fewer than 5 patients")
    facts = RunFacts(held_out=["two", "west"])
    rows = [result(0.8, site="west", n=80), few, result(0.8, site="north", n=90)]
    assert limits_of(facts, rows)[0].startswith(
        "It was tested at 1 hospital that took no part, in 80 patients."
    )
    assert limits_of(RunFacts(held_out=["two"]), [few, result(0.8, site="north", n=90)])[0] == (
        "No result of a hospital that took no part can be shown: too few patients, or none, were tested."
    )


def test_without_test_patients_it_says_what_the_patients_were_seen_for():
    assert "There is no test split: these patients were seen while the model was chosen." in limits_of(
        rows=[result(0.8, split="val")]
    )


def test_a_wide_interval_of_the_headline_is_named_and_no_other():
    wide = {"low": 0.1, "high": 0.9, "note": "wide interval"}
    rows = [result(0.5, **wide), result(0.5, model="pooled", **wide), result(0.5, metric="auroc", **wide)]
    assert limits_of(rows=rows)[1:-1] == [
        "The headline's interval is wide: north 0.10 to 0.90. "
        "More patients are needed before it decides anything."
    ]


def test_structures_that_were_missed_altogether_are_counted():
    missed = [
        result(2.0, metric="missed", structure="tumour"),
        result(0.0, metric="missed", structure="liver"),
    ]
    assert limits_of(rows=[result(0.8), *missed])[1:-1] == [
        "The federated model missed tumour altogether in 2 of 10 patients at north; their Dice counts as 0, "
        "their distance cannot be measured."
    ]


def test_suppressed_values_are_counted_and_other_missing_values_are_not():
    rows = [result(None), result(None, site="south"), result(None, site="east", note="not measured")]
    assert suppressed_values(run_of(rows=rows)) == 2
    assert "2 values are not shown because they come from too few patients." in limits_of(rows=rows)


def test_what_a_hospital_kept_is_counted_by_what_it_says_at_the_end():
    lines = [
        RoundLine(3, "north", "merged", scalars={"results/withheld": 9.0}),
        RoundLine(4, "north", "reported", scalars={"results/withheld": 4.0}),
        RoundLine(4, "south", "reported", scalars={"results/withheld": 1e300}),
        RoundLine(4, "west", "reported"),
    ]
    said = [one for one in limits_of(rounds=lines) if "of its results" in one]
    assert said == ["north sent 4 of its results to nobody: they are over too few patients."]


def test_missing_contributions_measurements_and_models_are_named():
    lines = [RoundLine(1, "north", "merged"), RoundLine(1, "south", "late"), RoundLine(2, "north", "merged")]
    lines += [RoundLine(2, "south", "refused"), RoundLine(2, "east", "not sampled")]
    facts = RunFacts(unmeasured={"south": "no test patients"}, missing_models={"local:south": "no update"})
    assert limits_of(facts, rounds=lines)[1:-2] == [
        "2 of 5 contributions are missing, of south; the model has seen less of their patients.",
        "Nothing was measured at south: no test patients.",
        "south alone is missing from the comparison: no update.",
    ]


def test_a_single_training_says_that_its_luck_was_not_measured():
    lines = [RoundLine(1, "north", "merged")]
    said = "how far its results spread was not measured"
    assert said in limits_of(rounds=lines)[-2]
    assert not any(said in one for one in limits_of(rows=[result(0.8, model="seed:4")], rounds=lines))


def test_cases_left_out_are_counted_by_reason():
    facts = RunFacts(left_out={"north": {"damaged": 2, "without a label": 1}})
    assert limits_of(facts)[1:-1] == [
        "north left out 3 of its cases because they cannot be used (2 damaged, 1 without a label): "
        "results are of the others."
    ]


def test_what_a_hospitals_data_may_mean_is_told():
    facts = RunFacts(sites=["north"], warnings={"north": ["9 rows of the test split equal a training row"]})
    assert "north: 9 rows of the test split equal a training row." in limits_of(facts)


def test_the_best_single_hospital_is_chosen_on_the_patients_it_is_reported_on():
    assert limits_of(rows=[result(0.7, model="local:north")])[1] == (
        "The best single hospital's model was chosen on the patients it is reported on, which favours it."
    )


def test_a_comparison_that_was_dropped_on_resume_is_told():
    facts, said = RunFacts(comparisons=["local_models", "seeds"]), "a comparison by "
    kept = {"privacy": "dp_sgd", "evaluation": {"local_models": True, "seeds": 3}}
    assert not any(said in one for one in limits_of(facts, study=kept))
    dropped = {"privacy": "dp_sgd", "evaluation": {"local_models": False, "seeds": 3}}
    assert limits_of(facts, study=dropped)[-2] == (
        "This run was also to make a comparison by local_models, which was left out when it was resumed: "
        "ask why."
    )
