"""`medfed evaluate`: a finished run's models on a hospital that took no part, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

import medfed
from medfed.errors import DataError, RunError
from medfed.evaluation.rows import FEDERATED, UNTRAINED, read_cases
from medfed.pipeline import train as run
from medfed.runs.folder import RunFolder

from .two_tables import write_tables


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("evaluate")
    return run.train(write_tables(folder), out=folder / "run")


def table(folder: Path, *splits: str) -> Path:
    lines = [f"W{n},{n - 2},{n % 2},{split}" for n, split in enumerate(splits)]
    path = folder / "west.csv"
    path.write_text("\n".join(["patient,x,ill,split", *lines]) + "\n")
    return path


def measured(folder: RunFolder, site: str) -> dict[str, int]:
    """Return how many cases of a hospital each model was measured on."""
    cases: dict[str, set[str]] = {}
    for row in read_cases(folder.cases):
        if row.site == site:
            cases.setdefault(row.model, set()).add(row.case)
    return {model: len(names) for model, names in cases.items()}


def test_the_test_split_is_measured_or_every_case(done: RunFolder, tmp_path: Path) -> None:
    where = table(tmp_path, "train", "test", "test", "val", "train", "test")
    medfed.evaluate(done.path, where, name="west")
    assert measured(done, "west") == {FEDERATED: 3, UNTRAINED: 3}
    medfed.evaluate(done.path, where, name="whole", all_cases=True)
    assert measured(done, "whole") == {FEDERATED: 6, UNTRAINED: 6}
    facts = done.read_facts()
    assert facts.held_out == ["west", "whole"]
    assert (facts.cases["west"], facts.cases["whole"]) == ({"test": 3}, {"test": 6})
    assert facts.cases["north"]["train"] == 2
    page = done.report.read_text()
    assert "west" in page
    assert "W1" not in page


def test_a_hospital_that_trained_is_not_evaluated_under_its_name(done: RunFolder, tmp_path: Path) -> None:
    before = done.facts.read_bytes(), done.cases.read_bytes()
    with pytest.raises(
        RunError, match="hospital 'north' trained in this run; give the one to evaluate anoth"
    ):
        medfed.evaluate(done.path, table(tmp_path, "test"), name="north")
    with pytest.raises(DataError, match=r"hospital 'east': no case is in the test split .* --all-cases"):
        medfed.evaluate(done.path, table(tmp_path, "train", "val", "train"), name="east")
    assert (done.facts.read_bytes(), done.cases.read_bytes()) == before


def test_what_is_no_run_is_not_evaluated(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run"):
        medfed.evaluate(tmp_path, table(tmp_path, "test"))
