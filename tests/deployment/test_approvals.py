"""The record of approved studies: by digest, chained, whole after a power cut, revocable, and compared."""

from __future__ import annotations

import pytest

from medfed.deployment import approvals
from medfed.errors import AuditError, StudyError
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import verify


@pytest.fixture(scope="module")
def study(tiny):
    return read_study(tiny / "tiny.yaml")


@pytest.fixture(scope="module")
def changed(tiny):
    return read_study(tiny / "tiny.yaml", ["train.rounds=4"])


def test_approval_is_of_one_digest(tmp_path, study, changed):
    known, other = study_digest(study), study_digest(changed)
    assert not approvals.is_approved(tmp_path / "site", known)
    approvals.approve(tmp_path / "site", study, "m.muster")
    assert approvals.is_approved(tmp_path / "site", known)
    assert not approvals.is_approved(tmp_path / "site", other)
    path = tmp_path / "site" / approvals.FILE
    assert verify(path).lines == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_agreement_that_was_written_in_is_found(tmp_path, study):
    approvals.approve(tmp_path, study, "m.muster")
    path, known = tmp_path / approvals.FILE, study_digest(study)
    path.write_bytes(path.read_bytes().replace(known.encode(), b"b" * 64) + path.read_bytes())
    with pytest.raises(AuditError, match="line 2: does not continue"):
        approvals.is_approved(tmp_path, known)


def test_a_power_cut_while_agreeing_leaves_no_agreement(tmp_path, study):
    approvals.approve(tmp_path, study, "m.muster")
    path, known = tmp_path / approvals.FILE, study_digest(study)
    path.write_bytes(path.read_bytes()[:-20])
    assert not approvals.is_approved(tmp_path, known)
    approvals.approve(tmp_path, study, "m.muster")
    assert approvals.is_approved(tmp_path, known)


def test_an_approval_is_revoked_and_given_again(tmp_path, study, changed):
    known = study_digest(study)
    for one in (changed, study):
        approvals.approve(tmp_path, one, "m.muster")
    assert approvals.revoke(tmp_path, known[:12].upper(), "a.other").digest == known
    assert not approvals.is_approved(tmp_path, known)
    assert approvals.is_approved(tmp_path, study_digest(changed))
    assert approvals.last_approved(tmp_path) == study_digest(changed)
    assert [(one.by, one.revoked) for one in approvals.approvals(tmp_path)] == [
        ("m.muster", False),
        ("a.other", True),
    ]
    approvals.approve(tmp_path, study, "m.muster")
    assert approvals.is_approved(tmp_path, known)


@pytest.mark.parametrize("digits", ["", "abc", "f" * 64])
def test_only_an_approved_study_is_revoked(tmp_path, study, digits):
    approvals.approve(tmp_path, study, "m.muster")
    digits = study_digest(study)[:11] if digits == "abc" else digits
    with pytest.raises(StudyError, match=f"that are approved: {study_digest(study)[:12]}$"):
        approvals.revoke(tmp_path, digits, "m.muster")
    assert approvals.is_approved(tmp_path, study_digest(study))


def test_what_changed_since_the_last_approval_is_told(tmp_path, tiny, study):
    assert approvals.describe_changes(tmp_path, study) == ""
    approvals.approve(tmp_path, study, "m.muster")
    day, digits = approvals.approvals(tmp_path)[0].time[:10], study_digest(study)[:12]
    title = f"Changed since the study of this name that was approved here on {day} ({digits})\n"
    assert approvals.describe_changes(tmp_path, study) == f"{title}  nothing\n"
    settings = ["train.rounds=4", "rule={kind: median}", 'task.classes=[background, "le\\u202esion"]']
    changes = approvals.describe_changes(tmp_path, read_study(tiny / "tiny.yaml", settings))
    assert changes.startswith(title)
    assert "  train.rounds: 3 -> 4\n" in changes
    assert '  rule.kind: "fedavg" -> "median"\n' in changes
    # A name of others cannot reorder the page.
    assert '"le\\u202esion"' in changes
    assert changes.isascii()
    other = read_study(tiny / "tiny.yaml", ["name=another"])
    assert approvals.describe_changes(tmp_path, other) == ""


def test_a_file_that_is_not_what_was_approved_is_not_compared(tmp_path, study, changed):
    approvals.approve(tmp_path, study, "m.muster")
    path = tmp_path / approvals.STUDIES / f"{study_digest(study)}.yaml"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(path.read_text().replace("rounds: 3", "rounds: 4"))
    assert approvals.describe_changes(tmp_path, changed) == ""


def test_a_revocation_that_was_cut_from_the_record_is_missed(study, tmp_path):
    known, head = study_digest(study), tmp_path / "secret.approvals"
    approvals.approve(tmp_path, study, "m.muster", head)
    record = (tmp_path / "consent.jsonl").read_bytes()
    approvals.revoke(tmp_path, known, "a.other", head)
    assert not approvals.is_approved(tmp_path, known, head)
    assert head.stat().st_mode & 0o777 == 0o600
    whole = (tmp_path / "consent.jsonl").read_bytes()
    for left in (record, b"", None):
        (tmp_path / "consent.jsonl").unlink()
        if left is not None:
            (tmp_path / "consent.jsonl").write_bytes(left)
        for asked in (
            lambda: approvals.is_approved(tmp_path, known, head),
            lambda: approvals.approve(tmp_path, study, "a.other", head),
        ):
            with pytest.raises(AuditError, match=r"is not among the \d of consent\.jsonl; lines were cut"):
                asked()
    (tmp_path / "consent.jsonl").write_bytes(whole)
    assert not approvals.is_approved(tmp_path, known, head)


def test_a_record_ahead_of_its_head_is_taken(study, tmp_path, monkeypatch):
    """A power cut between the two writes, of the first line and of a later one."""
    known, head = study_digest(study), tmp_path / "secret.approvals"
    write = approvals.write_whole

    def power_cut(path, text, **more):
        if path == head and text != approvals.GENESIS:
            raise SystemExit
        write(path, text, **more)

    monkeypatch.setattr(approvals, "write_whole", power_cut)
    with pytest.raises(SystemExit):
        approvals.approve(tmp_path, study, "m.muster", head)
    monkeypatch.undo()
    assert approvals.is_approved(tmp_path, known, head)
    approvals.approve(tmp_path, study, "m.muster", head)
    approvals.revoke(tmp_path, known, "a.other")
    assert not approvals.is_approved(tmp_path, known, head)


def test_the_record_of_another_hospital_approves_nothing_here(study, tmp_path):
    known, (north, south) = study_digest(study), (tmp_path / "north", tmp_path / "south")
    for site in (north, south):
        site.mkdir()
    heads = {site: site / "secret.approvals" for site in (north, south)}
    approvals.approve(north, study, "m.muster", heads[north])
    (south / "consent.jsonl").write_bytes((north / "consent.jsonl").read_bytes())
    for asked in (
        lambda: approvals.is_approved(south, known, heads[south]),
        lambda: approvals.approve(south, study, "a.other", heads[south]),
    ):
        with pytest.raises(AuditError, match=r"a copy of another hospital's.*Nothing in it counts here"):
            asked()
    (south / "consent.jsonl").unlink()
    approvals.approve(south, study, "a.other", heads[south])
    assert approvals.is_approved(south, known, heads[south])
    (south / "consent.jsonl").write_bytes((north / "consent.jsonl").read_bytes())
    with pytest.raises(AuditError, match=r"is not among the 1 of consent\.jsonl"):
        approvals.is_approved(south, known, heads[south])
