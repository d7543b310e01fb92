"""What happened over the rounds: which curves are drawn, and who took part."""

from __future__ import annotations

import math

import pytest

from medfed.evaluation.report.rounds import curves, moved_bytes, on_all_sentence, participation
from medfed.runs.rounds import RoundLine

from .result_rows import run_of


def line(number, site="north", status="merged", **more):
    return RoundLine(number, site, status, **more)


def scored(number, **scalars):
    return line(number, scalars={name.replace("_", "/", 1): value for name, value in scalars.items()})


def curves_of(*lines):
    return curves(run_of(rounds=lines))


def test_the_best_ranked_score_and_both_losses_are_drawn():
    scalars = {"val_auroc": 0.6, "val_dice": 0.5, "val_loss": 0.4, "train_loss": 0.3, "train_steps": 9.0}
    drawn = curves_of(scored(1, **scalars), scored(2, **scalars))
    assert [(curve["name"], curve["title"]) for curve in drawn] == [
        ("val/dice", "Dice on validation patients"),
        ("val/loss", "Loss on validation patients"),
        ("train/loss", "Loss in training"),
    ]


def test_a_validation_score_belongs_to_the_model_of_the_round_before():
    """A site validates the model that a round begins with, so round 1 scores the untrained model, round 0."""
    (curve,) = curves_of(scored(1, val_dice=0.1), scored(2, val_dice=0.5))
    (panel,) = curve["panels"]
    assert ">round 0<" in panel["graph"]
    assert ">round 1<" in panel["graph"]
    (loss,) = curves_of(scored(1, train_loss=0.1), scored(2, train_loss=0.5))
    assert ">round 2<" in loss["panels"][0]["graph"]


def test_a_single_point_or_a_value_that_is_not_finite_is_no_curve():
    assert curves_of(scored(1, train_loss=0.5)) == []
    assert (
        curves_of(scored(1, train_loss=0.5), scored(2, train_loss=math.nan), scored(3, train_loss=None)) == []
    )


def test_a_title_gives_first_and_last_value_without_a_minus_zero():
    (curve,) = curves_of(scored(1, train_loss=-1.234), scored(2, train_loss=-0.001))
    (panel,) = curve["panels"]
    assert (panel["site"], panel["last"]) == ("north", "0.00")
    assert 'aria-label="north: train/loss from −1.23 to 0.00 over 2 rounds"' in panel["graph"]


@pytest.mark.parametrize(("status", "crosses"), [("absent", 1), ("not sampled", 0)])
def test_only_a_round_that_a_site_missed_is_crossed(status, crosses):
    (curve,) = curves_of(scored(1, train_loss=0.5), line(2, status=status), scored(3, train_loss=0.4))
    assert curve["panels"][0]["graph"].count('class="gap"') == 2 * crosses


def test_participation_sums_bytes_and_averages_seconds():
    (north,) = participation(
        run_of(
            rounds=[
                line(1, seconds=2.0, examples=8, bytes_up=1000, bytes_down=500),
                line(2, seconds=4.0, examples=9, bytes_up=500, bytes_down=400),
                line(3, status="not sampled"),
                line(4, status="absent", reason="no answer"),
                line(5, status="absent", reason="no answer"),
                line(6, status="late"),
                line(7, bytes_up=0),
            ]
        )
    )
    assert (north["site"], north["merged"], north["rounds"]) == ("north", 3, 7)
    assert north["missed"] == [("absent: no answer", "rounds 4 to 5"), ("late", "round 6")]
    assert (north["seconds"], north["examples"], north["up"], north["down"]) == (
        3.0,
        9,
        "1.5 kB",
        "900 bytes",
    )


def test_the_line_that_only_reports_final_scores_is_no_round():
    (north,) = participation(run_of(rounds=[line(1), line(2, status="reported")]))
    assert (north["rounds"], north["seconds"], north["examples"]) == (1, None, None)


def test_bytes_are_of_every_round_as_on_the_first_page():
    """The last line only reports the final model's scores: no round of training, but it was sent."""
    lines = [
        RoundLine(round=1, site="north", status="merged", bytes_up=1000, bytes_down=2000),
        RoundLine(round=2, site="north", status="reported", bytes_up=500, bytes_down=700),
    ]
    (north,) = participation(run_of(rounds=lines))
    assert (north["rounds"], north["up"], north["down"]) == (1, "1.5 kB", "2.7 kB")


def test_a_hospital_that_never_answered_is_not_said_to_have_received_a_model():
    lines = [
        RoundLine(round=1, site="north", status="absent", bytes_down=640),
        RoundLine(round=1, site="south", status="refused", bytes_up=800, bytes_down=640),
    ]
    run = run_of(rounds=[*lines, RoundLine(round=1, site="west", status="merged", bytes_down=640)])
    assert moved_bytes(run, "north") == {"up": "0 bytes", "down": "–"}
    assert moved_bytes(run, "south") == {"up": "800 bytes", "down": "640 bytes"}


@pytest.mark.parametrize(
    ("merged", "on_all", "said"),
    [
        (
            5,
            2,
            "In rounds 4 to 5 each hospital trained on its validation patients, too: the model of round 3",
        ),
        (4, 2, "In round 4 each hospital trained on its validation patients, too: the model of round 3 is"),
        (3, 2, ""),  # the run ended before
        (5, 0, ""),
    ],
)
def test_validation_patients_that_trained_are_told_of_rounds_that_were_merged(merged, on_all, said):
    study = {"train": {"rounds": 5, "last_rounds_on_all": on_all}}
    lines = [line(number) for number in range(1, merged + 1)]
    sentence = on_all_sentence(run_of(study=study, rounds=[*lines, line(merged + 1, status="reported")]))
    assert sentence.startswith(said)
    assert bool(sentence) == bool(said)
    assert on_all_sentence(run_of(rounds=lines)) == ""
