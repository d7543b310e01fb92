"""What trains again on the same patients: refused under privacy, and never changes the run it comes from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from medfed.errors import StudyError
from medfed.pipeline.experiments.repeated_training import require_no_privacy, run_again
from medfed.pipeline.federate import StudyRun
from medfed.registry import kinds
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_study

from ..two_tables import opened


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> StudyRun:
    return opened(tmp_path_factory.mktemp("again"))


@pytest.mark.parametrize("kind", sorted(set(kinds("privacy")) - {"none"}))
def test_under_each_mechanism_training_again_is_refused(run: StudyRun, kind: str) -> None:
    """By the kind's name alone, which needs no settings of the mechanism."""

    class Named(msgspec.Struct, frozen=True, tag_field="kind", tag=kind):
        """A mechanism of this kind."""

    private = msgspec.structs.replace(run.study, privacy=Named())
    with pytest.raises(
        StudyError,
        match=rf"^it trains twice, and each training tells more .* privacy of '{kind}' counts; train once$",
    ):
        require_no_privacy(private, "it trains twice", "train once")


def test_without_a_mechanism_it_is_not(run: StudyRun) -> None:
    require_no_privacy(run.study, "it trains twice", "train once")


def test_the_cases_stay_and_seed_steps_and_each_sites_batch_are_the_other_studys(run: StudyRun) -> None:
    path = Path(str(run.study.sites["north"])).parent / "study.yaml"
    other = read_study(
        path,
        ["seed=9", "train.batch=7", "train.steps=5", "site_overrides.south.batch=2"],
    )
    before = {site: vars(one.data).copy() for site, one in run.hospitals.items()}
    again = run_again(run, other, RunFolder(run.folder.path / "again"))
    assert {site: one.data.batch for site, one in again.hospitals.items()} == {"north": 7, "south": 2}
    assert {(one.data.seed, one.data.steps) for one in again.hospitals.values()} == {(9, 5)}
    for site, hospital in run.hospitals.items():
        assert vars(hospital.data) == before[site]  # the run it comes from trains on as before
        assert again.hospitals[site].data.index is hospital.data.index
        assert again.hospitals[site].secret == hospital.secret


def test_its_records_are_in_its_own_folder(run: StudyRun) -> None:
    folder = RunFolder(run.folder.path / "own")
    again = run_again(run, run.study, folder)
    assert folder.path.is_dir()
    assert folder.path.stat().st_mode & 0o077 == 0
    assert (again.folder, again.study) == (folder, run.study)
    assert again.audit is not run.audit
    assert run.folder.path != again.folder.path
