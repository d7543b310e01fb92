"""The federation of a study in one process: its merges by hand, what it saves, and hospitals without data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medfed.errors import DataError, QuorumError
from medfed.pipeline import _told_to_workers
from medfed.pipeline._told_to_workers import computing_of, threads_of
from medfed.pipeline.federate import StudyRun, _method, federate
from medfed.runs.progress import Progress
from medfed.runs.rounds import read_rounds
from medfed.study import validation
from medfed.study.study import Study

from .two_tables import CASES, EPOCHS, ROUNDS, descent, initial, opened


class Noted(Progress):
    """Records what it is shown."""

    def __init__(self) -> None:
        self.started: list[tuple[object, ...]] = []
        self.steps: list[tuple[str, int, int]] = []
        self.stopped = 0

    def start(self, *phase: object) -> None:
        self.started.append(phase)

    def training(self, site: str, step: int, steps: int) -> None:
        self.steps.append((site, step, steps))

    def stop(self) -> None:
        self.stopped += 1


def merged_by_hand(study: Study, sites: dict[str, list[tuple[float, int]]]) -> tuple[float, float]:
    """Return the mean of the sites' models, weighted by their cases, after every round."""
    line = initial(study)
    total = sum(map(len, sites.values()))
    for _ in range(ROUNDS):
        trained = [(descent(line, cases, EPOCHS), len(cases) / total) for cases in sites.values()]
        line = (sum(w * share for (w, _), share in trained), sum(b * share for (_, b), share in trained))
    return line


def test_the_model_is_the_mean_by_hand_and_is_saved(tmp_path: Path) -> None:
    progress = Noted()
    run = replace(opened(tmp_path), progress=progress)
    weights = federate(run).weights
    result = [float(tensor) for _, tensor in sorted(weights.items(), reverse=True)]
    assert result == pytest.approx(merged_by_hand(run.study, CASES), abs=1e-6)
    saved = torch.load(run.folder.checkpoint("federated"), weights_only=True)["state_dict"]
    assert {name: tensor.tolist() for name, tensor in saved.items()} == {
        name: tensor.tolist() for name, tensor in weights.items()
    }
    assert progress.started == [
        ("two-tables: fedavg over 2 hospitals", {"north": 2, "south": 4}, ROUNDS, run.study.task.main_score)
    ]
    # One batch per epoch: the steps of a round count over its epochs, from 0 in each round.
    assert [step for site, *step in progress.steps if site == "south"] == [[0, 3], [1, 3], [2, 3]] * ROUNDS
    assert progress.stopped == 1


def test_a_hospital_without_usable_data_is_left_out_of_the_mean(tmp_path: Path) -> None:
    run = opened(tmp_path)
    left = {"south": run.hospitals["south"]}
    run = replace(run, hospitals=left, unusable={"north": DataError("site 'north': nothing to train on")})
    with pytest.raises(DataError, match="site 'north': nothing to train on"):
        run.hospital("north")
    assert run.hospital("south") is left["south"]
    assert set(run.data) == {"south"}
    weights = federate(run).weights
    expected = merged_by_hand(run.study, {"south": CASES["south"]})
    assert [float(t) for _, t in sorted(weights.items(), reverse=True)] == pytest.approx(expected, abs=1e-6)
    absent = [report for report in read_rounds(run.folder.rounds) if report.site == "north"]
    assert "site 'north': nothing to train on" in (absent[0].reason or "")


def test_the_display_ends_when_the_study_does_not(tmp_path: Path) -> None:
    progress = Noted()
    run = replace(opened(tmp_path, ["sampling.minimum=2"]), progress=progress)
    run = replace(run, unusable={"north": DataError("no data")})
    with pytest.raises(QuorumError, match="north"):
        federate(run)
    assert progress.stopped == 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "fedavg"),
        (["train.local={kind: fedprox}"], "fedavg with fedprox"),
        (["rule={kind: scaffold}", "train.local={kind: scaffold}"], "scaffold"),
    ],
)
def test_a_method_is_named_by_rule_and_local_method(tmp_path: Path, overrides, expected: str) -> None:
    run: StudyRun = opened(tmp_path, overrides)
    assert _method(run.study) == expected


@pytest.mark.parametrize(
    "overrides, threads, said",
    [
        ([], None, ""),
        (["simulation.threads=3"], 3, "3 threads"),
        (["simulation.engine=processes"], 4, "1 worker processes of 4 threads"),
        (["simulation.engine=processes", "simulation.workers=2"], 2, "2 worker processes of 2 threads"),
        # Two hospitals have work for two workers only.
        (["simulation.engine=processes", "simulation.workers=9"], 2, "2 worker processes of 2 threads"),
        (
            ["simulation.engine=processes", "simulation.workers=2", "simulation.threads=1"],
            1,
            "2 worker processes of 1 threads",
        ),
        # The cores are those of a cluster, which this machine's number says nothing of.
        (["simulation.engine=ray", "simulation.workers=2"], 1, "2 Ray workers of 1 threads"),
    ],
)
def test_a_machine_of_four_cores_is_divided_by_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], threads: int | None, said: str
) -> None:
    monkeypatch.setattr(_told_to_workers, "available_cores", lambda: 4)
    monkeypatch.setattr(validation, "find_spec", lambda name: object())  # Ray, where it is not installed
    study = opened(tmp_path, overrides).study
    assert threads_of(study) == threads
    assert computing_of(study) == said


def test_a_simulation_in_one_process_computes_with_the_threads_that_it_names(tmp_path: Path) -> None:
    before, seen = torch.get_num_threads(), set()

    class Threads(Progress):
        def training(self, site: str, step: int, steps: int) -> None:
            seen.add(torch.get_num_threads())

    federate(replace(opened(tmp_path, ["simulation.threads=3"]), progress=Threads()))
    assert seen == {3}
    assert torch.get_num_threads() == before
