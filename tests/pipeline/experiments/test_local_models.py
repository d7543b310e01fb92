"""A hospital's own model: gradient descent on its own cases alone, once, and why one is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medfed.errors import DataError
from medfed.pipeline.experiments.local_models import train_local_models
from medfed.pipeline.federate import StudyRun
from medfed.runs.progress import Progress

from ..two_tables import CASES, EPOCHS, ROUNDS, descent, initial, opened


class Lines(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def logged(run: StudyRun) -> tuple[StudyRun, list[str]]:
    progress = Lines()
    return replace(run, progress=progress), progress.lines


def test_each_hospital_trains_on_its_own_cases_for_as_long_as_the_federation(tmp_path: Path) -> None:
    run, lines = logged(opened(tmp_path))
    models, missing = train_local_models(run)
    assert missing == {}
    assert sorted(models) == ["local:north", "local:south"]
    for site, cases in CASES.items():
        weights = models[f"local:{site}"]
        result = [float(tensor) for _, tensor in sorted(weights.items(), reverse=True)]
        assert result == pytest.approx(descent(initial(run.study), cases, ROUNDS * EPOCHS), abs=1e-6)
        saved = torch.load(run.folder.checkpoint(f"local:{site}"), weights_only=True)["state_dict"]
        assert {name: t.tolist() for name, t in saved.items()} == {n: t.tolist() for n, t in weights.items()}
    assert lines == [f"{site}: its own model, for comparison" for site in ("north", "south")]


def test_a_saved_model_is_not_trained_again(tmp_path: Path) -> None:
    run = opened(tmp_path)
    first, _ = train_local_models(run)
    again, lines = logged(run)
    second, _ = train_local_models(again)
    assert lines == []
    assert {name: list(map(float, model.values())) for name, model in second.items()} == {
        name: list(map(float, model.values())) for name, model in first.items()
    }


def test_a_hospital_without_usable_data_has_no_model_and_stops_nobody(tmp_path: Path) -> None:
    run = opened(tmp_path)
    why = "site 'north': nothing to train on"
    run, lines = logged(replace(run, unusable={"north": DataError(why)}))
    models, missing = train_local_models(run)
    assert (sorted(models), missing) == (["local:south"], {"local:north": why})
    assert f"north: no model of its own: {why}" in lines
