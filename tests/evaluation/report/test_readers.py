"""What the operator, the privacy officer and the statistician read follows from the run's own records."""

from __future__ import annotations

from medfed.evaluation.conformal import CUTS
from medfed.evaluation.report.readers import departures, methods, operation
from medfed.runs.facts import PrivacyFacts, RunFacts, SitePrivacy
from medfed.runs.rounds import WITHHELD, RoundLine

from .result_rows import result, run_of


def line(number: int, site: str, status: str = "merged", **more: object) -> RoundLine:
    return RoundLine(round=number, site=site, status=status, bytes_up=1000, bytes_down=2000, **more)


ROUNDS = [
    line(1, "north", scalars={"val/dice": 0.5}),
    line(1, "south", "absent", reason="did not answer"),
    line(2, "north", scalars={WITHHELD: 3.0}),
    line(2, "south", scalars={"left_out/unreadable": 2.0}),
]


def test_the_operator_reads_what_went_wrong_at_which_hospital():
    facts = RunFacts(
        sites=["north", "south", "east"],
        unmeasured={"south": "no test cases"},
        missing_models={"local:south": "no space left"},
        warnings={"north": ["two rows are equal"]},
    )
    lines = operation(run_of(facts, rounds=ROUNDS))
    assert ("south", "round 1: absent: did not answer") in lines
    assert ("east", "no update was merged: no round asked it") in lines
    assert ("south", "no test cases") in lines
    assert ("south alone", "is missing: no space left") in lines
    assert ("north", "two rows are equal") in lines
    assert operation(run_of(RunFacts(sites=["north"]), rounds=ROUNDS[:1])) == []


def test_rounds_for_which_a_hospital_was_not_drawn_did_not_ask_it():
    rounds = [line(1, "north"), line(1, "east", "not sampled"), line(1, "south", "not sampled")]
    rounds += [line(2, "north"), line(2, "east", "refused"), line(2, "south", "not sampled")]
    lines = operation(run_of(RunFacts(sites=["north", "south", "east"]), rounds=rounds))
    assert ("south", "no update was merged: no round asked it") in lines
    assert ("east", "no update was merged: 1 round asked it") in lines


def test_the_privacy_officer_reads_who_sent_what():
    """North sent two updates of 1000 bytes and got 2000 twice; a curve is as many rows as there are cuts."""
    facts = RunFacts(
        sites=["north", "south"],
        privacy=PrivacyFacts(kind="dp_sgd", notes=["noise 1.1"], sites={"north": SitePrivacy(1.234, [])}),
    )
    curve = [result(0.1, metric=f"risk_found@{cut:g}", split="val", structure="lesion") for cut in CUTS]
    rows = [result(0.8), result(0.1, against="pooled"), result(None, metric="hd95_mm"), *curve]
    left = departures(run_of(facts, {"privacy": {"kind": "dp_sgd"}}, rows, ROUNDS))
    north, south = left["lines"]
    assert (north["site"], north["rounds"], north["up"], north["down"]) == ("north", 2, "2.0 kB", "4.0 kB")
    assert (north["epsilon"], north["results"], north["kept"]) == ("1.23", "1, 1 risk curve", "3")
    assert (south["rounds"], south["epsilon"], south["results"], south["kept"]) == (1, "none", "0", "–")
    assert left["names"] == f"left_out/unreadable, {WITHHELD}, val/dice"
    assert left["notes"][:2] == ["The updates were protected by dp_sgd.", "noise 1.1"]
    assert "No mechanism protected" in departures(run_of(rounds=ROUNDS))["notes"][0]
    assert departures(run_of()) is None


def test_the_statistician_reads_each_method_once_with_its_metrics():
    rows = [
        result(0.8, method="BCa bootstrap over patients, 1000 draws, seed 0"),
        result(0.7, method="BCa bootstrap over patients, 50 draws, seed 0, within hospitals", site="all"),
        result(
            0.1,
            method="BCa bootstrap over patients, 50 draws, seed 0; sign-flip permutation, Holm over 4 tests",
            against="pooled",
            p=0.04,
        ),
        result(0.2, method="BCa bootstrap over patients; sign-flip permutation", against="untrained"),
        result(0.1, metric="auroc", method="paired DeLong, Holm over 4 tests", against="pooled", p=0.04),
        result(0.5, metric="sensitivity", method="Wilson; threshold 0.31"),
        result(None),
    ]
    study = {"evaluation": {"draws": 50, "smallest_group": 7}}
    given = methods(run_of(RunFacts(seed=4), study, rows))
    assert given["lines"] == [
        ("BCa bootstrap over patients", ["Dice", "Dice (difference)"]),
        ("Wilson", ["Sensitivity"]),
        ("paired DeLong", ["AUROC (difference)"]),
        ("test: sign-flip permutation", ["Dice (difference)"]),
    ]
    assert "50 draws with seed 4" in given["notes"][1]
    assert "they may disagree near the limit" in given["notes"][2]
    assert (
        "fewer than 7 patients is withheld, and so is one from which it would follow; 1 are"
        in given["notes"][3]
    )
