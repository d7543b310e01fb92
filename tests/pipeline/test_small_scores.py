"""Numbers of training that are of too few patients are in nothing that leaves, nor in a simulation's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from medfed.deployment.live_page.view import read_view, summary
from medfed.deployment.policy import Policy, egress_under
from medfed.pipeline import train as run
from medfed.pipeline.factory import egress_of, folders_of, hospital_of
from medfed.pipeline.small_scores import PatientCounts, few_numbers, patient_counts, under_counts
from medfed.runs.folder import RunFolder
from medfed.runs.rounds import RoundLine, read_rounds
from medfed.study.reading import read_study

CLASSES = """\
name: small-hospitals
seed: 5
task: {kind: tabular, classes: [healthy, ill]}
network: {kind: fully_connected, hidden: []}
data: {kind: table, features: [x], target: ill, standardise: none}
train: {rounds: 2, epochs: 1, batch: 8, keep: best, optimiser: {kind: sgd, lr: 0.5}}
evaluation: {draws: 20, smallest_group: 5, local_models: false, pooled_model: false, robustness: false}
trackers: [{kind: csv}]
sites: {north: north.csv, south: south.csv, east: east.csv, rare: rare.csv}
"""
TIMES = """\
name: times
task: {kind: survival}
network: {kind: fully_connected, hidden: []}
data: {kind: table, features: [x], time: months, event: died}
train: {rounds: 1, epochs: 1, batch: 8, optimiser: {kind: sgd, lr: 0.5}}
sites: {north: north.csv, south: south.csv}
"""
SCORES = {"val/accuracy", "val/auroc", "val/loss"}


def write_table(path: Path, splits: dict[str, int], ill=lambda split, one: one % 2) -> None:
    """Write a table of so many patients of each split; `ill` says who of them is."""
    generator = np.random.default_rng(len(path.stem))
    lines = ["patient,x,ill,split"]
    for split, number in splits.items():
        lines += [f"{split}{one},{generator.normal():.6f},{ill(split, one)},{split}" for one in range(number)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two hospitals with enough patients, one of 2 and 3, and one where 2 of 12 have it."""
    folder = tmp_path_factory.mktemp("classes")
    write_table(folder / "north.csv", {"train": 12, "val": 12, "test": 12})
    write_table(folder / "south.csv", {"train": 14, "val": 10, "test": 12})
    write_table(folder / "east.csv", {"train": 2, "val": 3, "test": 12})
    write_table(folder / "rare.csv", {"train": 12, "val": 12, "test": 12}, lambda split, one: int(one < 2))
    (folder / "study.yaml").write_text(CLASSES)
    return folder / "study.yaml"


def counts_of(study_file: Path, site: str) -> PatientCounts:
    study = read_study(study_file)
    return patient_counts(study, hospital_of(study, site, folders_of(study)[site]).data)


@pytest.mark.parametrize(
    "site, counts",
    [("north", (12, 12, 6)), ("south", (14, 10, 5)), ("east", (2, 3, 1)), ("rare", (12, 12, 2))],
)
def test_patients_are_counted_in_all_and_of_the_rarer_outcome(classes, site, counts):
    assert counts_of(classes, site) == counts


def test_a_hospital_where_nobody_is_ill_ranks_nobody(classes, tmp_path):
    write_table(tmp_path / "north.csv", {"train": 6, "val": 7, "test": 1}, lambda split, one: 0)
    for name in ("south", "east", "rare"):
        write_table(tmp_path / f"{name}.csv", {"train": 6, "val": 7, "test": 1})
    (tmp_path / "study.yaml").write_text(CLASSES)
    assert counts_of(tmp_path / "study.yaml", "north") == (6, 7, None)


def test_of_survival_patients_with_an_event_count(tmp_path):
    for site in ("north", "south"):
        lines = ["patient,x,months,died,split"]
        lines += [f"t{one},{one},{one + 1},{int(one < 3)},train" for one in range(9)]
        lines += [f"v{one},{one},{one + 1},{int(one < 2)},val" for one in range(8)]
        (tmp_path / f"{site}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "study.yaml").write_text(TIMES)
    assert counts_of(tmp_path / "study.yaml", "north") == (3, 8, 2)
    study = read_study(tmp_path / "study.yaml")
    few = {name for name in few_numbers(study, PatientCounts(3, 8, 2), 5) if "personal" not in name}
    assert few == {"train/loss", "val/loss", "val/c_index"}  # each is of the two with an event


@pytest.mark.parametrize(
    "counts, few",
    [
        ((5, 5, 5), set()),
        ((5, 9, None), set()),
        ((4, 9, 5), {"train/loss"}),
        ((5, 9, 4), {"val/auroc"}),  # accuracy and loss are of all nine
        ((1, 4, 2), {"train/loss", *SCORES}),
    ],
)
def test_what_stays_is_of_fewer_patients_than_may_be_shown(classes, counts, few):
    study = read_study(classes)
    named = few_numbers(study, PatientCounts(*counts), 5)
    assert {name for name in named if "personal" not in name} == few
    assert {name.replace("personal/", "") for name in named} == few


def test_a_hospitals_own_minimum_counts_where_it_is_larger(classes):
    study = read_study(classes)
    assert egress_under(study, Policy(smallest_group=10), PatientCounts(9, 12, 9)).few == {
        "train/loss",
        "val/auroc",
        "val/personal/auroc",
    }
    assert egress_under(study, Policy(smallest_group=3), PatientCounts(9, 12, 9)).few == frozenset()
    # Without any result the loss of training stays by the same rule.
    assert "train/loss" in egress_under(study, Policy(rows="none"), PatientCounts(9, 12, 9)).few


def test_where_no_minimum_is_stated_nothing_is_withheld(classes):
    study = read_study(classes)
    egress = egress_of(study, smallest_group=None)
    assert under_counts(egress, study, PatientCounts(1, 1, 1)) == egress


@pytest.fixture(scope="module")
def pair(classes) -> tuple[RunFolder, RunFolder]:
    """The same training twice: with nothing withheld, and with groups of five."""
    folder = classes.parent
    bare = run.train(classes, out=folder / "bare", overrides=["evaluation.smallest_group=1"])
    return bare, run.train(classes, out=folder / "run")


def numbers_of(lines: list[RoundLine]) -> dict[tuple[int, str, str], float]:
    return {
        (line.round, line.site, name): value
        for line in lines
        for name, value in line.scalars.items()
        if value is not None and (name.startswith("val/") or name == "train/loss")
    }


def test_rounds_lack_just_the_numbers_of_few_patients(pair):
    bare, done = (numbers_of(read_rounds(one.rounds)) for one in pair)
    hidden = {(site, name) for _, site, name in bare.keys() - done.keys()}
    assert hidden == {("east", "train/loss"), ("rare", "val/auroc"), *(("east", name) for name in SCORES)}
    # The training is the same, but for the choice of a round, whose scores the last lines are.
    trained = [key for key in done if key[0] <= 2]
    assert trained
    assert {key: done[key] for key in trained} == {key: bare[key] for key in trained}


def test_no_file_of_a_simulation_holds_or_gives_a_number_of_few(pair):
    """But the hospitals' own folders (sites/), which are not the hub's."""
    bare, done = pair
    shown = numbers_of(read_rounds(done.rounds))
    hidden = {value for key, value in numbers_of(read_rounds(bare.rounds)).items() if key not in shown}
    hidden -= {*shown.values()}
    hidden = {value for value in hidden if value * 4096 % 1}
    assert len(hidden) >= 5
    files = [path for path in done.path.rglob("*") if path.is_file() and "sites" not in path.parts]
    texts = {path.name: path.read_bytes().decode("latin-1") for path in files}
    texts["live page"] = json.dumps(summary(read_view(done.path)), default=msgspec.to_builtins)
    assert {"rounds.jsonl", "status.json", "metrics.csv", "run.json", "audit.jsonl", "report.html"} <= {
        *texts
    }
    for name, text in texts.items():
        for written in re.findall(r"\d\.\d{4,}(?:e-?\d+)?", text):
            assert not any(abs(float(written) - value) < 1e-7 for value in hidden), (name, written)


def test_the_mean_by_which_a_round_is_chosen_gives_no_hidden_score(pair):
    """Each hospital counts alike in it, so that of n hospitals n means minus the others' gave one's score."""
    chosen = pair[1].read_facts().chosen
    assert chosen.score == "val/auroc"
    assert chosen.sites == ["north", "south"]
