"""Runs within a folder: which are trained, which go on, and which begin anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medfed.errors import RunError
from medfed.pipeline import sub_runs
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.study.study import Study

from .two_tables import write_tables


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(write_tables(tmp_path))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], bool]]:
    """What is trained: the names in the folder before, and whether the run is resumed."""
    calls: list[tuple[list[str], bool]] = []

    def train(study: Study, *, out: Path, resume: bool = False, **options: Any) -> RunFolder:
        calls.append((sorted(path.name for path in out.glob("*")), resume))
        return RunFolder(out)

    monkeypatch.setattr(sub_runs, "train", train)
    return calls


def test_a_run_that_ended_before_its_first_round_begins_anew(
    study: Study, tmp_path: Path, trained: list[tuple[list[str], bool]]
) -> None:
    folder = tmp_path / "run"
    sub_runs.finished_run(study, folder, Progress())
    folder.mkdir()
    (folder / "status.json").write_text("{}")
    sub_runs.finished_run(study, folder, Progress())
    assert trained == [([], False), ([], False)]


def test_a_folder_with_rounds_and_without_facts_is_left_as_it_is(
    study: Study, tmp_path: Path, trained: list[tuple[list[str], bool]]
) -> None:
    folder = tmp_path / "run"
    (folder / "hub").mkdir(parents=True)
    (folder / "status.json").write_text("{}")
    sub_runs.finished_run(study, folder, Progress())  # `train` refuses a folder that is not empty
    assert trained == [(["hub", "status.json"], False)]


def test_a_run_that_was_interrupted_goes_on_and_one_of_another_study_is_refused(
    study: Study, tmp_path: Path, trained: list[tuple[list[str], bool]]
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_facts(RunFacts(digest=study_digest(study)))
    sub_runs.finished_run(study, folder.path, Progress())
    assert trained == [(["run.json"], True)]
    folder.write_facts(RunFacts(digest="0" * 64))
    with pytest.raises(RunError, match="holds a run of study 000000000000"):
        sub_runs.finished_run(study, folder.path, Progress())
