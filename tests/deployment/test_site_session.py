"""One hospital in one study: what it is called, whether it trains, and its audit log."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from medfed.deployment.enrolment import enrol
from medfed.deployment.site_session import SiteSession, open_audit_log
from medfed.runs.folder import RunFolder
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import verify
from medfed.wire.signing import Identity


def session(site, study, folder) -> SiteSession:
    return SiteSession(site, study, None, RunFolder(folder), None, None, None)


@pytest.mark.parametrize("name, trains", [("north", True), ("far", False)])
def test_a_held_out_site_does_not_train(tiny, tmp_path, name, trains):
    study = read_study(tiny / "tiny.yaml")
    opened, side = [], SimpleNamespace()
    exchange = SimpleNamespace(open_site=lambda *arguments: opened.append(arguments) or side)
    joined = session(SimpleNamespace(name=name, exchange=exchange, give_up_hours=2), study, tmp_path)
    assert (joined.name, joined.trains, joined.digest) == (name, trains, study_digest(study))
    joined.connect()
    assert opened == [(study_digest(study), name, RunFolder(tmp_path).site(name))]
    assert side.max_silence_s == 7200


def test_the_audit_log_is_signed_where_the_site_has_a_key(tmp_path):
    unsigned = SimpleNamespace(exchange=SimpleNamespace())
    open_audit_log(unsigned, RunFolder(tmp_path / "a")).write("received", site="north")
    assert verify(RunFolder(tmp_path / "a").audit).signed == 0
    enrol.init(tmp_path / "authority", "test", ["127.0.0.1"])
    request, _ = enrol.request(tmp_path / "north", "north")
    enrol.sign(tmp_path / "authority", request, tmp_path / "kit")
    enrol.accept(tmp_path / "north", tmp_path / "kit")
    signed = SimpleNamespace(exchange=SimpleNamespace(credentials=str(tmp_path / "north")))
    open_audit_log(signed, RunFolder(tmp_path / "b")).write("received", site="north")
    authority = Identity(tmp_path / "north").authority
    assert verify(RunFolder(tmp_path / "b").audit, authority=authority).signer == "north"
