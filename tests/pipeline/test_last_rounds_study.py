"""A study whose last round trains on validation patients: its models by hand, and what is said of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from medfed.errors import DataError
from medfed.evaluation.rows import read_cases, read_rows
from medfed.pipeline.evaluate import evaluate
from medfed.pipeline.experiments.local_models import train_local_models
from medfed.pipeline.experiments.pooled import pooled_model
from medfed.pipeline.federate import StudyRun, federate
from medfed.pipeline.train import train
from medfed.runs.progress import Progress
from medfed.runs.rounds import read_rounds

from .two_tables import CASES, EPOCHS, descent, initial, opened, write_tables

# Two rounds of three epochs, of which the second trains on the validation patients, too.
KEY = "train.last_rounds_on_all=1"
VALIDATION = [(1.0, 1), (-1.0, 0)]
Line = tuple[float, float]


def last_epochs(
    cases: Sequence[tuple[float, int]], training: int, seed: str
) -> list[list[tuple[float, int]]]:
    """Return the one batch of each epoch of the last round: `training` cases of pass after pass over all."""
    drawn: list[tuple[float, int]] = []
    for number in range(EPOCHS):  # a pass is at least as long as an epoch
        drawn += random.Random(f"{seed}/last rounds/{number}").sample(cases, len(cases))
    return [drawn[epoch * training : (epoch + 1) * training] for epoch in range(EPOCHS)]


def second_round(line: Line, cases: list[tuple[float, int]], training: int, seed: str) -> Line:
    for batch in last_epochs(cases, training, seed):
        line = descent(line, batch, 1)
    return line


def seed_of(run: StudyRun, site: str) -> str:
    return f"{run.study.seed}/{run.hospitals[site].data.index.cases[0].token}"


def numbers(weights) -> list[float]:
    return [float(tensor) for _, tensor in sorted(weights.items(), reverse=True)]


class Lines(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def test_the_federated_model_by_hand(tmp_path: Path) -> None:
    progress = Lines()
    run = replace(opened(tmp_path, [KEY]), progress=progress)
    found = numbers(federate(run).weights)
    start, sites = initial(run.study), list(CASES.items())
    # Round 1: training cases, 2 and 4, weigh the merge. Round 2: 2 + 2 (at most twice 2) and 4 + 2.
    first = [(descent(start, cases, EPOCHS), len(cases) / 6) for _, cases in sites]
    line = tuple(sum(one[k] * share for one, share in first) for k in (0, 1))
    second = [
        (second_round(line, [*cases, *VALIDATION], len(cases), seed_of(run, site)), (len(cases) + 2) / 10)
        for site, cases in sites
    ]
    assert found == pytest.approx([sum(one[k] * share for one, share in second) for k in (0, 1)], abs=1e-6)
    lines = read_rounds(run.folder.rounds)
    assert [(one.round, one.site, one.examples) for one in lines if one.status == "merged"] == [
        (1, "north", 2), (1, "south", 4), (2, "north", 4), (2, "south", 6),
    ]  # fmt: skip
    assert {one.round for one in lines if "val/loss" in one.scalars} == {1, 2}, "of the models of rounds 0, 1"
    assert "from round 2 on, each hospital trains on its validation patients, too" in progress.lines[0]


def test_a_hospitals_own_model_and_the_pooled_one_train_on_them_too(tmp_path: Path) -> None:
    run = opened(tmp_path, [KEY])
    models, _ = train_local_models(run)
    for site, cases in CASES.items():
        line = descent(initial(run.study), cases, EPOCHS)
        line = second_round(line, [*cases, *VALIDATION], len(cases), seed_of(run, site))
        assert numbers(models[f"local:{site}"]) == pytest.approx(line, abs=1e-6)
    every = [case for cases in CASES.values() for case in cases]
    joined = [case for cases in CASES.values() for case in (*cases, *VALIDATION)]
    line = descent(initial(run.study), every, EPOCHS)
    line = second_round(line, joined, len(every), f"pooled/{run.study.seed}/{run.study.seed}")
    assert numbers(pooled_model(run)) == pytest.approx(line, abs=1e-6)


def test_nothing_is_chosen_or_quoted_of_patients_who_trained(tmp_path: Path) -> None:
    overrides = [KEY, "evaluation.local_models=true", "train.local={kind: fine_tune, epochs: 1}"]
    done = train(write_tables(tmp_path), out=tmp_path / "run", overrides=overrides)
    assert {row.split for row in read_cases(done.cases)} == {"test"}
    sensitive = [row for row in read_rows(done.rows) if row.metric == "sensitivity"]
    assert sensitive
    assert all("threshold 0.5, not fixed on validation patients" in (row.method or "") for row in sensitive)
    reported = [line for line in read_rounds(done.rounds) if line.status == "reported"]
    assert [[name for name in line.scalars if name.startswith("val")] for line in reported] == [[], []]
    page = done.report.read_text()
    assert "In round 2 each hospital trained on its validation patients, too" in page
    assert "operating point 0.5, as validation patients trained in the last rounds" in page
    assert "Those of validation trained in the last rounds, too." in page


def test_evaluate_leaves_out_the_validation_patients(tmp_path: Path) -> None:
    done = train(write_tables(tmp_path), out=tmp_path / "run", overrides=[KEY])
    rows = (tmp_path / "north.csv").read_text().splitlines()
    (tmp_path / "again.csv").write_text("\n".join(row for row in rows if "val" in row or "patient" in row))
    with pytest.raises(DataError, match="all 2 cases are of patients who trained a model of this run"):
        evaluate(done.path, tmp_path / "again.csv", name="elsewhere", all_cases=True)


def test_a_rule_that_evaluates_training_cases_has_all_of_them(tmp_path: Path) -> None:
    run = opened(tmp_path, [KEY, "rule={kind: qfedavg}"])
    federate(run)
    assert all(line.status != "refused" for line in read_rounds(run.folder.rounds))
