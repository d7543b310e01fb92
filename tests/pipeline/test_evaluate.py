"""`medfed evaluate`: a finished run's models on a hospital that took no part, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import medfed
from medfed.cli import main
from medfed.data.splits import case_token
from medfed.errors import DataError, RunError
from medfed.evaluation.rows import FEDERATED, UNTRAINED, read_cases
from medfed.pipeline import train as run
from medfed.pipeline.predict import predict
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


def test_a_second_evaluation_replaces_the_first_under_the_same_name(done: RunFolder, tmp_path: Path) -> None:
    medfed.evaluate(done.path, table(tmp_path, *["test"] * 5), name="again")
    medfed.evaluate(done.path, table(tmp_path, "test", "test"), name="again")
    assert measured(done, "again") == {FEDERATED: 2, UNTRAINED: 2}
    assert done.read_facts().cases["again"] == {"test": 2}


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


SITE = """\
name: elsewhere
data: own.csv
exchange: {kind: folder, url: shared}
columns: {patient: Fall, x: Wert, ill: krank, split: Teil}
"""


def test_a_site_files_headings_are_used_to_evaluate_and_to_predict(done: RunFolder, tmp_path: Path) -> None:
    plain = table(tmp_path, "train", "test", "test", "val", "train", "test")
    lines = plain.read_text().splitlines()
    (tmp_path / "own.csv").write_text("\n".join(["Fall,Wert,krank,Teil", *lines[1:]]) + "\n")
    (tmp_path / "site.yaml").write_text(SITE)
    medfed.evaluate(done.path, plain, name="plainly")

    def command(*words: object) -> str:
        told = CliRunner().invoke(main, [str(word) for word in words])
        assert told.exit_code == 0, told.output
        return told.output

    command("evaluate", done.path, "--site", tmp_path / "site.yaml", "--name", "mapped")
    assert measured(done, "mapped") == measured(done, "plainly") == {FEDERATED: 3, UNTRAINED: 3}
    rows = {
        site: sorted(row.value for row in read_cases(done.cases) if row.site == site)
        for site in ("mapped", "plainly")
    }
    assert rows["mapped"] == rows["plainly"]
    predict(done.path, plain, tmp_path / "one")
    command("predict", done.path, "--site", tmp_path / "site.yaml", "--out", tmp_path / "two")
    one, two = (
        [line.split(",")[1:] for line in (tmp_path / name / "predictions.csv").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert one == two
    assert len(two) == 7
    # Tokens are those of the hospital's own training, by its secret.
    keys = (tmp_path / "two" / "stays-in-hospital.csv").read_text().splitlines()
    secret = (tmp_path / "secret").read_bytes()
    assert keys[1].split(",")[0] == case_token(secret, keys[1].split(",")[1])
    refused = CliRunner().invoke(main, ["predict", str(done.path), "--out", str(tmp_path / "three")])
    assert "predict: name the hospital's folder or table, or its site file with --site" in refused.output


def test_a_second_report_that_differs_by_a_patient_says_that_both_can_be_subtracted(
    tmp_path: Path,
) -> None:
    path, out = write_tables(tmp_path), tmp_path / "run"
    done = run.train(path, out=out, overrides=["evaluation.smallest_group=3"])

    def warnings(*splits: str) -> list[str]:
        medfed.evaluate(done.path, table(tmp_path, *splits), name="west")
        return done.read_facts().warnings.get("west", [])

    assert warnings(*["test"] * 6) == []
    assert warnings(*["test"] * 6) == []
    (warning,) = warnings(*["test"] * 7)
    assert warning.startswith("of its patients 1 came and 0 went since it was evaluated before; beside")
    assert "results of fewer than 3 patients" in warning
    assert "share one of them only" in done.report.read_text()
    assert warnings(*["test"] * 5) != []
    assert warnings("test") == []
    assert warnings(*["test"] * 7) == []  # what was of one patient was not shown
