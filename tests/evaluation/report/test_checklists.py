"""Checklists and the model card: what a run can know is filled in, and the rest is left to a person."""

from __future__ import annotations

import msgspec

from medfed.evaluation.report.checklists import checklists, model_card, templates
from medfed.evaluation.report.focus import focus_of
from medfed.evaluation.report.limits import limits
from medfed.evaluation.report.summary import summary
from medfed.evaluation.rows import Row
from medfed.federation.model_selection import mean_of_rounds
from medfed.runs.facts import PrivacyFacts, RunFacts, SitePrivacy
from medfed.runs.rounds import RoundLine
from medfed.study.averaging import Ema

from .result_rows import run_of


def test_checklists_say_what_was_left_out_spent_and_changed():
    facts = RunFacts(
        sites=["north"],
        notes={"north": ["3 cases have no label and are left out", "took the folder for Decathlon"]},
        privacy=PrivacyFacts(
            unit="patient", delta=1e-5, sites={"north": SitePrivacy(2.5, []), "south": SitePrivacy(3.25, [])}
        ),
    )
    study = {"privacy": {"kind": "dp_sgd"}, "data": {"missing": "median"}}
    changed = Row(
        round=3, site="west", split="test", model="federated", metric="dice", value=-0.1, n=9,
        against="unchanged", group="condition=noise of 10 %",
    )  # fmt: skip
    claim, tripod = checklists(run_of(facts, study, [changed]))
    answers = {**claim.answers, **tripod.answers}
    assert answers["Flow of patients, numbers excluded"] == (
        "north: 3 cases have no label and are left out. Reasons: a person"
    )
    assert "epsilon 3.25 spent for each patient, at delta 1e-05" in answers["De-identification"]
    assert answers["Robustness and sensitivity"] == "Measured: noise of 10 %"
    assert answers["Missing data"] == "an empty number: median"
    assert answers["Ethical approval"] is None


def test_the_line_that_only_reports_final_scores_is_no_round():
    rounds = [RoundLine(number, "north", "merged") for number in (1, 2)]
    rounds.append(RoundLine(3, "north", "reported"))
    claim, _ = checklists(run_of(RunFacts(sites=["north"], seed=4), rounds=rounds))
    training = claim.answers["Initial parameters, training, choice of the final model"]
    assert training.startswith("2 rounds, merged by fedavg; seed 4")
    chosen = mean_of_rounds(Ema(decay=0.5), 2)
    answers = [
        answer
        for one in checklists(run_of(RunFacts(sites=["north"], chosen=chosen), rounds=rounds))
        for answer in one.answers.values()
        if answer
    ]
    assert any("with a decay of 0.5. Each hospital" in answer for answer in answers)
    assert not any("0.5.." in answer for answer in answers)


def test_every_template_uses_names_that_a_run_has():
    run = run_of()
    lists = checklists(run)
    for filled, empty in zip(lists, templates().checklists, strict=True):
        assert filled.answers.keys() == empty.answers.keys()
    card = model_card(run, "Dice 0.8")
    assert len(card) == len(templates().model_card)
    assert (card["Result"], card["Output"]) == ("Dice 0.8", None)


def test_the_columns_beside_images_are_named_with_what_an_empty_cell_becomes():
    study = {"data": {"kind": "images", "table": {"features": ["age", "sex"], "missing": "drop"}}}
    run = run_of(RunFacts(classes=["no", "yes"]), study)
    assert model_card(run, "")["Input"] == "Images, and of a table beside them: age, sex"
    _, tripod = checklists(run)
    assert tripod.answers["Predictors"] == "Images, and of a table beside them: age, sex"
    assert tripod.answers["Missing data"] == "an empty number: drop"
    table = run_of(study={"data": {"kind": "table", "features": ["bmi"]}})
    assert model_card(table, "")["Input"] == "Columns of a table: bmi"
    assert model_card(run_of(), "")["Input"] == "Images"


def test_nothing_is_said_of_images_or_structures_where_there_are_none():
    facts = RunFacts(sites=["north"], task="survival")
    study = {"data": {"kind": "table", "features": ["age"]}}
    claim, tripod = checklists(run_of(facts, study, rounds=[RoundLine(1, "north", "merged")]))
    assert claim.answers["De-identification"].startswith("Tables stay in the hospital; ")
    assert claim.answers["Failure analysis"] == "no contribution was missing. Causes: a person"
    assert tripod.answers["Model output"] == (
        "A patient's risk against others', and the chance of no event until the times of the Brier scores"
    )
    claim, tripod = checklists(run_of(RunFacts(sites=["north"], task="segment")))
    assert claim.answers["De-identification"].startswith("Images stay in the hospital; ")
    assert claim.answers["Failure analysis"] == (
        "no contribution was missing; missed and invented structures are counted. Causes: a person"
    )
    assert tripod.answers["Model output"] == "Label map"


def test_who_sent_no_final_scores_lost_no_contribution():
    rounds = [
        RoundLine(1, "north", "merged"),
        RoundLine(1, "south", "absent"),
        RoundLine(2, "north", "reported"),
    ]
    rounds.append(RoundLine(2, "south", "absent", reason="it reported nothing"))
    claim, _ = checklists(run_of(RunFacts(sites=["north", "south"]), rounds=rounds))
    assert claim.answers["Failure analysis"].startswith("1 contribution of a hospital was missing.")


def test_a_training_hospital_under_another_name_is_not_said_to_have_taken_no_part():
    facts = RunFacts(
        sites=["north"],
        held_out=["another", "west"],
        seen={"another": 13, "west": 1},
        cases={"another": {"test": 3}, "west": {"test": 9}},
    )
    about = {"round": 1, "split": "test", "model": "federated", "metric": "dice", "value": 0.5, "n": 9}
    rows = [Row(site=site, **about) for site in ("another", "west")]
    run = run_of(facts, rows=rows)
    claim, _ = checklists(run)
    assert claim.answers["Test on external data"] == (
        "west took no part in training; patients who trained are not measured (13 of another, 1 of west)"
    )
    focus = focus_of(run)
    assert "It was tested at 1 hospital that took no part, in 9 patients." in limits(run, focus)[0]
    alone = run_of(msgspec.structs.replace(facts, held_out=["another"]), rows=rows[:1])
    assert limits(alone, focus_of(alone))[0].startswith("No hospital was held out")
    asked = summary(alone, focus_of(alone))
    assert "That it works at a hospital that took no part: none was tested." in asked["may_not"]
    assert "Tested at another: 9 patients who did not train it." in asked["whom"]
