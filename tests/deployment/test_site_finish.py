"""Which run a hospital finishes without a hub (that it is finished: `test_site_service.py`)."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
from hospitals import write_study

from medfed.deployment import admission
from medfed.deployment.approvals import approve, revoke
from medfed.deployment.site_file import SiteFile
from medfed.deployment.site_finish import LOCK, finish_later, mark_answered, run_without_hub
from medfed.deployment.site_session import SiteSession
from medfed.errors import RunError
from medfed.exchange import DropOut
from medfed.files import lock
from medfed.pipeline.create_run import create_run
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import AuditLog


@pytest.fixture
def hospital(tmp_path):
    """A hospital's site file and the digests of two studies that it approved."""
    study = read_study(write_study(tmp_path))
    studies = [msgspec.structs.replace(study, name=name) for name in ("a", "b")]
    out, secret = tmp_path / "runs", tmp_path / "secret"
    for one in studies:
        approve(out, one, "m.muster", tmp_path / "secret.approvals")
    site = SiteFile(name="north", data="", exchange=None, out=str(out), secret=str(secret))
    return SimpleNamespace(site=site, studies=studies, out=out, head=tmp_path / "secret.approvals")


def begin(hospital, study, *, finished: bool = False) -> RunFolder:
    folder = RunFolder(hospital.out / f"{study.name}-{study_digest(study)[:8]}")
    folder.site("north")
    facts = create_run(folder, study, {})
    folder.checkpoints.mkdir()
    folder.checkpoint("federated").touch()
    if finished:
        folder.write_facts(msgspec.structs.replace(facts, finished="2026-01-01"))
    return folder


def test_only_an_answered_run_or_the_one_that_ended_and_is_asked_for_needs_no_hub(hospital):
    site, (a, b) = hospital.site, hospital.studies
    folder = begin(hospital, a)
    assert run_without_hub(site, "") is None  # the hub may lack its last numbers
    mark_answered(folder, "north")
    assert run_without_hub(site, "") == folder
    assert run_without_hub(site, study_digest(a)[:12]) == folder
    assert run_without_hub(site, study_digest(b)) is None
    revoke(hospital.out, study_digest(a), "m.muster", hospital.head)
    assert run_without_hub(site, "") is None
    ended = begin(hospital, b, finished=True)
    assert run_without_hub(site, "") is None  # it waits for another study
    assert run_without_hub(site, study_digest(b)) == ended
    assert run_without_hub(site, study_digest(b)[:11]) is None  # too few digits to say which study is meant


def test_two_processes_do_not_finish_one_run(hospital):
    folder = begin(hospital, hospital.studies[0])
    mark_answered(folder, "north")
    session = SimpleNamespace(name="north", folder=folder, study=hospital.studies[0], progress=Progress())
    with (folder.site("north") / LOCK).open("w") as file:
        lock(file)
        assert run_without_hub(hospital.site, "") is None
        with pytest.raises(RunError, match="site 'north': another process finishes this run"):
            finish_later(session)


def test_a_hub_that_has_all_numbers_is_not_told_of_a_refusal(hospital, monkeypatch):
    """It may have ended: the site would wait for it in vain, and its reason would not be seen."""
    told = []
    monkeypatch.setattr(admission, "tell_both", lambda session, reason: told.append(reason))
    study = hospital.studies[0]
    folder = begin(hospital, study)
    session = SiteSession(hospital.site, study, None, folder, None, Progress(), AuditLog(None))
    admission.decline(session, DropOut.DATA)
    assert told == [DropOut.DATA]
    mark_answered(folder, "north")
    admission.decline(session, DropOut.POLICY)
    assert told == [DropOut.DATA]
