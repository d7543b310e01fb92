"""`--compare`: whole runs with equal budgets, and one table that agrees with the runs' own reports."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.errors import RunError, StudyError
from medfed.evaluation.rows import FEDERATED, POOLED, read_rows
from medfed.pipeline import compare
from medfed.pipeline.experiments.pooled import PooledData
from medfed.pipeline.factory import hospital_of
from medfed.runs.progress import Progress
from medfed.study.reading import read_study

STUDY = """
name: heart
seed: 3
task: {kind: tabular, classes: [healthy, disease]}
network: {kind: fully_connected}
data: {kind: table, target: y, features: [a, b, c]}
train: {rounds: 2, epochs: 1, batch: 8, optimiser: {kind: sgd, lr: 0.2}}
sampling: {minimum: 2}
evaluation: {draws: 200, smallest_group: 1}
sites: {north: north.csv, south: south.csv}
held_out: {west: west.csv}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heart")
    (folder / "heart.yaml").write_text(STUDY)
    for number, (site, rows) in enumerate({"north": 60, "south": 90, "west": 50}.items()):
        drawn = np.random.default_rng(number)
        with (folder / f"{site}.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["patient", "a", "b", "c", "y", "split"])
            for row in range(rows):
                x = drawn.normal(size=3)
                split = "test" if site == "west" or row % 3 == 2 else ("val" if row % 6 == 1 else "train")
                out.writerow([f"Smith{site}{row}", *x, int(x[0] - x[1] + drawn.normal() > 0), split])
    return folder


@pytest.fixture(scope="module")
def compared(place):
    methods = ["fedavg", "fedadam", "krum", "scaffold"]
    return compare.compare(place / "heart.yaml", methods, out=place / "out")


pytestmark = pytest.mark.slow


def test_every_method_had_the_same_budget(compared):
    _, folder = compared
    budgets = []
    for method in ("fedavg", "fedadam", "scaffold"):
        lines = [json.loads(line) for line in (folder / method / "rounds.jsonl").read_text().splitlines()]
        budgets.append(
            [(x["round"], x["site"], x["scalars"].get("train/steps"), x["examples"]) for x in lines]
        )
    assert len(budgets[0]) == 6
    assert budgets[0] == budgets[1] == budgets[2]


def test_the_table_says_what_the_methods_own_report_says(compared):
    table, folder = compared
    assert table.metric == "auroc"
    assert table.places == ["west", "all", "north", "south"]
    for method in ("fedavg", "fedadam", "scaffold"):
        for place in table.places:
            (own,) = (
                row
                for row in read_rows(folder / method / "rows.jsonl")
                if (row.model, row.site, row.split, row.metric, row.against, row.group)
                == (FEDERATED, place, "test", "auroc", None, None)
            )
            score = table.score(method, place)
            assert score.n == own.n
            assert [score.value, score.low, score.high] == pytest.approx(
                [own.value, own.low, own.high], abs=1e-9
            )
    gap = table.difference("fedadam", "west")
    assert gap.value == pytest.approx(
        table.score("fedavg", "west").value - table.score("fedadam", "west").value
    )
    assert gap.low < gap.value < gap.high


def test_local_and_pooled_training_stand_beside(compared):
    table, _ = compared
    assert list(table.methods)[-4:] == [compare.ALONE, "north alone", "south alone", POOLED]
    assert table.score(compare.ALONE, "west") is None
    assert table.score(compare.ALONE, "north").n == table.score("fedavg", "north").n
    assert table.score("north alone", "west").n == table.score(POOLED, "west").n == 50
    assert table.score(POOLED, "west").value > 0.7  # it learnt


def test_a_method_that_cannot_run_says_why_and_costs_nothing(compared):
    table, folder = compared
    assert "'krum' with these settings needs" in table.methods["krum"].refused
    assert not (folder / "krum").exists()
    assert (
        table.methods["scaffold"].bytes_up > 1.5 * table.methods["fedavg"].bytes_up * 0.7
    )  # its control variate


def test_the_terminal_says_which_method_is_next(compared, place, tmp_path):
    class LoggedLines(Progress):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def log(self, text: str) -> None:
            self.lines.append(text)

    progress, (_, trained) = LoggedLines(), compared
    folder = shutil.copytree(trained, tmp_path / "again")
    compare.compare(place / "heart.yaml", ["fedavg", "krum"], out=folder, resume=True, progress=progress)
    assert progress.lines[0] == "method 1 of 2: fedavg"
    assert progress.lines[1].startswith("method 2 of 2: krum is not run: study: rule.kind: 'krum'")


def test_pooled_training_has_as_many_steps_as_the_hospitals_together(place):
    study = read_study(place / "heart.yaml", ["train.steps=7"])
    data = {site: hospital_of(study, site, where).data for site, where in study.sites.items()}
    batches = list(PooledData(data, study.train.batch).train_dataloader())
    assert len(batches) == 7 * 2
    seen = {token for batch in batches for token in batch["case"]}
    assert seen == {case.token for one in data.values() for case in one.cases("train")}


def test_files_hold_the_table_and_no_patient(compared, place):
    _, folder = compared
    page = (folder / "comparison.html").read_text()
    assert "scaffold" in page
    assert "not run: " in page
    rows = read_rows(folder / "comparison.jsonl")
    with (folder / "comparison.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    for file in folder.glob("comparison.*"):
        assert "Smith" not in file.read_text()


def test_a_finished_comparison_is_not_trained_again(compared, place):
    _, folder = compared
    before = (folder / "fedavg" / "rounds.jsonl").stat().st_mtime_ns
    done = CliRunner().invoke(
        main,
        [
            "train",
            str(place / "heart.yaml"),
            "--compare",
            "fedavg,fedadam",
            "--out",
            str(folder),
            "--resume",
            "--quiet",
        ],
    )
    assert done.exit_code == 0, done.output
    assert (folder / "fedavg" / "rounds.jsonl").stat().st_mtime_ns == before
    assert "AUROC, with 95 % intervals over patients" in done.output
    with pytest.raises(RunError, match="is not empty; continue with --resume"):
        compare.compare(place / "heart.yaml", ["fedavg"], out=folder)


@pytest.mark.parametrize(
    "methods, message",
    [
        (["fedagv"], "no method 'fedagv'; there are .*fedavg"),
        (["fedavg", "fedavg"], "'fedavg' is named twice"),
        ([""], "no method is named"),
        (["krum"], "none of these can run: krum: .*needs"),
    ],
)
def test_mistakes_are_answered_before_anything_is_trained(place, tmp_path, methods, message):
    with pytest.raises(StudyError, match=message):
        compare.compare(place / "heart.yaml", methods, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
