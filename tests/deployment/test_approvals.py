"""The record of approved studies: by digest, chained, and whole after a power cut."""

from __future__ import annotations

import pytest

from medfed.deployment import approvals
from medfed.errors import AuditError
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import verify


def test_approval_is_of_one_digest(tmp_path, tiny):
    study = read_study(tiny / "tiny.yaml")
    known, changed = study_digest(study), study_digest(read_study(tiny / "tiny.yaml", ["train.rounds=4"]))
    assert not approvals.is_approved(tmp_path / "site", known)
    approvals.approve(tmp_path / "site", known, "m.muster")
    assert approvals.is_approved(tmp_path / "site", known)
    assert not approvals.is_approved(tmp_path / "site", changed)
    path = tmp_path / "site" / approvals.FILE
    assert verify(path).lines == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_agreement_that_was_written_in_is_found(tmp_path):
    approvals.approve(tmp_path, "a" * 64, "m.muster")
    path = tmp_path / approvals.FILE
    path.write_bytes(path.read_bytes().replace(b"a" * 64, b"b" * 64) + path.read_bytes())
    with pytest.raises(AuditError, match="line 2: does not continue"):
        approvals.is_approved(tmp_path, "a" * 64)


def test_a_power_cut_while_agreeing_leaves_no_agreement(tmp_path):
    approvals.approve(tmp_path, "a" * 64, "m.muster")
    path = tmp_path / approvals.FILE
    path.write_bytes(path.read_bytes()[:-20])
    assert not approvals.is_approved(tmp_path, "a" * 64)
    approvals.approve(tmp_path, "a" * 64, "m.muster")
    assert approvals.is_approved(tmp_path, "a" * 64)
