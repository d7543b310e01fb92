"""A study that keeps its best round's model: facts, report, model card, rows and audit log say which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medfed.evaluation.report.checklists import model_card
from medfed.evaluation.report.run import read_run
from medfed.evaluation.rows import read_rows
from medfed.pipeline.train import train
from medfed.runs.rounds import read_rounds

ROOT = Path(__file__).parents[2]
SHORT = ["evaluation.local_models=false", "evaluation.pooled_model=false", "evaluation.draws=10"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    overrides = ["train.rounds=4", "train.keep=best", "train.patience=1", *SHORT]
    return train(
        ROOT / "configs/tabular.yaml", out=tmp_path_factory.mktemp("best") / "run", overrides=overrides
    )


def test_the_chosen_round_has_the_best_mean_score_in_rounds_jsonl(done):
    choice = done.read_facts().chosen
    lines = [line for line in read_rounds(done.rounds) if "val/auroc" in line.scalars]
    scores: dict[int, list[float]] = {}
    for line in lines:  # a site sends the score of the model that it was sent
        scores.setdefault(line.round - 1, []).append(line.scalars["val/auroc"])
    means = {round: sum(values) / len(values) for round, values in scores.items() if round}
    best = max(means, key=lambda round: (means[round], -round))
    assert (choice.round, choice.best) == (best, best)
    assert choice.mean == pytest.approx(means[best], abs=1e-12)
    assert choice.merged == max(means)
    assert len(choice.sites) == 4


def test_everything_that_is_said_of_the_model_is_said_of_that_round(done):
    choice = done.read_facts().chosen
    page = done.report.read_text()
    run = read_run(done.path)
    assert {row.round for row in read_rows(done.rows)} == {choice.round}
    assert choice.sentence in page
    assert choice.sentence.rstrip(".") in model_card(run, "")["Training"]
    assert f"the model is that of round {choice.round}" in choice.sentence
    assert '"event":"chosen"' in done.audit.read_text()
    saved = torch.load(done.checkpoint("federated"), weights_only=True)
    assert saved["epoch"] == choice.round
