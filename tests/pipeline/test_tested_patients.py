"""Results of a run whose difference would be of a few patients, on one page or on two."""

from __future__ import annotations

from pathlib import Path

import pytest

import medfed
from medfed.errors import DataError, RunError
from medfed.evaluation.rows import read_rows
from medfed.pipeline import train as run
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.watch.labelled import measure_look
from medfed.pipeline.watch.state import WatchFolder
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_run_study

from .two_tables import write_tables

LEAST = 3


def table(path: Path, patients: list[int], word: str = "W") -> Path:
    """Write test patients, each of whom has values of their own."""
    lines = [f"{word}{n},{n * 0.37 - 2:.2f},{n % 2},test" for n in patients]
    path.write_text("\n".join(["patient,x,ill,split", *lines]) + "\n")
    return path


@pytest.fixture
def done(tmp_path: Path) -> RunFolder:
    return run.train(
        write_tables(tmp_path), out=tmp_path / "run", overrides=[f"evaluation.smallest_group={LEAST}"]
    )


@pytest.fixture
def evaluated(done: RunFolder, tmp_path: Path):
    def evaluate(patients, name: str = "west", word: str = "W") -> list[str]:
        medfed.evaluate(done.path, table(tmp_path / "west.csv", list(patients), word), name=name)
        return done.read_facts().warnings.get(name, [])

    return evaluate


def test_another_name_on_the_same_page_is_no_way_around(done: RunFolder, evaluated) -> None:
    assert evaluated(range(6)) == []
    before = done.report.read_bytes(), done.cases.read_bytes(), done.tested.read_bytes()
    with pytest.raises(
        DataError,
        match=r"hospital 'whole': its patients are those of 'west', whose results are in this report, but "
        r"for 1 more and 0 fewer; .* fewer than 3 patients may be shown .* Nothing was measured\. Give the",
    ):
        evaluated(range(7), "whole")
    assert (done.report.read_bytes(), done.cases.read_bytes(), done.tested.read_bytes()) == before
    assert evaluated(range(9), "whole") == []
    assert evaluated(range(6), "same") == []
    assert evaluated(range(2), "few") == [], "of fewer patients than may be shown no result is"


def test_two_names_that_give_a_third_ones_patient_together_are_refused(evaluated) -> None:
    """0..5 and 5..10 and 0..10: the first two minus the third are patient 5."""
    evaluated(range(6), "first")
    evaluated(range(5, 11), "second")
    with pytest.raises(DataError, match="hospital 'third': its patients are those of"):
        evaluated(range(11), "third")


def test_other_patients_of_the_same_names_are_others(evaluated) -> None:
    """Two hospitals that count their patients from 1 have nobody in common."""
    assert evaluated(range(6), "one", "P") == []
    shifted = range(20, 27)
    assert evaluated(shifted, "other", "P") == []


def test_each_earlier_report_counts_and_not_the_last_alone(evaluated) -> None:
    assert evaluated(range(6)) == []
    assert evaluated(range(20, 30)) == []
    (warning,) = evaluated(range(7))
    assert warning.startswith("of its patients 1 came and 0 went since it was evaluated before; beside")
    assert evaluated(range(7)) == []


def test_the_test_patients_of_a_hospital_that_trained_count(done: RunFolder, tmp_path: Path) -> None:
    """North's 2 test patients are too few to be shown, so that nothing follows from one more."""
    path = tmp_path / "more.csv"
    lines = (tmp_path / "north.csv").read_text().splitlines()
    path.write_text("\n".join([*lines, "new,0.3,1,test"]) + "\n")
    medfed.evaluate(done.path, path, name="grown")
    more = [f"t{n},{n * 0.21:.2f},{n % 2},test" for n in range(4)]
    (tmp_path / "north.csv").write_text("\n".join([*lines, *more]) + "\n")
    again = run.train(
        tmp_path / "study.yaml", out=tmp_path / "again", overrides=[f"evaluation.smallest_group={LEAST}"]
    )
    path.write_text("\n".join([*lines, *more, "new,0.3,1,test"]) + "\n")
    with pytest.raises(
        DataError, match="its patients are those of 'north', whose results are in this report"
    ):
        medfed.evaluate(again.path, path, name="grown")


def test_a_watched_models_results_are_compared_with_the_reports(
    done: RunFolder, evaluated, tmp_path: Path
) -> None:
    evaluated(range(6))
    study = read_run_study(done.study)

    def rows(name: str, patients: range):
        state = WatchFolder(done.path, name)
        state.path.mkdir(parents=True)
        path = table(tmp_path / "new.csv", list(patients))
        measure_look(study, done, state, path, name, OwnChoices(), 1, {f"W{n}" for n in patients})
        return {row.metric: row for row in read_rows(state.rows)}

    grown = rows("grown", range(7))
    assert grown["patients"].value == 7
    assert grown["brier"].value is None
    assert grown["brier"].is_suppressed
    assert grown["brier"].note.startswith(
        "beside the results in the run's report it would be of fewer than 3"
    )
    assert rows("enough", range(9))["brier"].value is not None
    assert rows("same", range(6))["brier"].value is not None
    # Conversely a report says so beside a look; it is another page.
    (warning,) = evaluated(range(10))
    assert "share one of them only" in warning


def test_a_damaged_file_is_told(done: RunFolder, evaluated) -> None:
    evaluated(range(6))
    assert "W1" not in done.tested.read_text()
    done.tested.write_text("{")
    with pytest.raises(
        RunError, match=r"tested\.json, which says of which patients results were, is damaged"
    ):
        evaluated(range(6))
