"""Plots of groups of patients and risk curves: what is drawn, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
from evaluation.fake_runs import write

from medfed.evaluation.histograms import Bin, ScoreHistogram
from medfed.evaluation.patient_groups import GroupPoint, PatientGroups
from medfed.evaluation.report.page import render
from medfed.evaluation.report.run import Run, read_run
from medfed.evaluation.report.spread import risk_curves, spread
from medfed.evaluation.rows import Row


def run_of(path: Path, **changes: object) -> Run:
    write(path, rounds=2, patients=6)
    return read_run(path)._replace(**changes)  # type: ignore[arg-type]


def of_groups(metric: str, points: list[GroupPoint], **more: object) -> PatientGroups:
    return PatientGroups(
        round=2, site="north", metric=metric, points=tuple(points), structure="lesion", **more
    )


def test_a_dot_per_group_and_a_note_of_how_many(tmp_path: Path) -> None:
    some = of_groups("dice", [GroupPoint(5, 0.3), GroupPoint(6, 0.8)], left_out=2, why="missed, Dice 0")
    drawn = spread(run_of(tmp_path / "run", groups=[some], curves=[]))
    assert drawn is not None
    (swarm,) = drawn["swarms"]
    assert swarm["figure"].count('<circle class="mark plain"') == 2
    assert swarm["note"] == "lesion Dice: 11 patients in 2 groups; 2 missed, not drawn: their Dice is 0"


def test_bins_of_predicted_risk_are_coloured_by_what_most_have(tmp_path: Path) -> None:
    bins = (Bin(0.0, 0.5, 1, 4, 1.0), Bin(0.5, 1.0, 6, 1, 5.6))
    curve = ScoreHistogram(2, "north", "test", "federated", bins)
    drawn = spread(run_of(tmp_path / "run", groups=[], curves=[curve]))
    assert drawn is not None
    (swarm,) = drawn["swarms"]
    # By form, not by colour alone: who sees no colours sees which are filled.
    assert swarm["figure"].count("mark hollow") == swarm["figure"].count("mark strong") == 1
    assert "mark plain" not in swarm["figure"]
    assert swarm["note"] == (
        "predicted risk: 12 patients in 2 groups; filled where most have it, else hollow"
    )


def test_limits_of_agreement_are_the_rows(tmp_path: Path) -> None:
    points = [GroupPoint(5, -1.0, 10.0), GroupPoint(5, 2.0, 20.0)]
    run = run_of(tmp_path / "run", groups=[of_groups("volume_difference_ml", points)], curves=[])
    about = {
        "round": 2,
        "site": "north",
        "split": "test",
        "model": "federated",
        "n": 10,
        "structure": "lesion",
    }
    values = {"volume_limit_low_ml": -4.0, "volume_difference_ml": 0.5, "volume_limit_high_ml": 5.0}
    run.rows.extend(Row(metric=name, value=value, **about) for name, value in values.items())
    drawn = spread(run)
    assert drawn is not None
    (plot,) = drawn["agreements"]
    assert plot["figure"].count('class="reference"') == 2
    assert plot["note"] == "lesion at north: 10 patients in 2 groups"
    page = render(run)
    assert 'id="spread"' in page
    assert "never one patient" in page


def test_without_groups_there_is_no_section(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", groups=[], curves=[])
    assert spread(run) is None
    assert 'id="spread"' not in render(run)


def test_a_risk_curve_per_hospital(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    about = {
        "round": 9,
        "site": "north",
        "split": "val",
        "model": "federated",
        "n": 40,
        "structure": "lesion",
    }
    run.rows.extend(
        Row(metric=f"risk_found@{cut:g}", value=value, **about) for cut, value in ((0.1, 0.0), (0.5, 0.25))
    )
    study = {**run.study.sections, "evaluation": {"guarantee": 0.9, "confidence": 0.95}}
    run = run._replace(study=type(run.study)(study))
    (curve,) = risk_curves(run)
    assert curve["note"].startswith("north, 40 validation patients. In at least 90 % of patients with lesion")
    assert curve["figure"].count("<polyline") == 2
    assert msgspec.json.encode(curve)
