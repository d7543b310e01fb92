"""Policy, agreement, audit logs and a withdrawal across processes, by the commands that people type."""

from __future__ import annotations

import json
import os
import signal
import uuid
from dataclasses import dataclass

import pytest
from commands import PROCESSES, Across, run
from hospitals import STUDY

from medfed.cli.error_handling import DECLINED
from medfed.federation.egress import TRAINING
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import entries, verify
from medfed.wire.signing import Identity

TINY = (
    STUDY.format(rounds=2)
    .partition("sites:")[0]
    .replace("sampling: {minimum: 2}", "sampling: {minimum: 1}")
    .replace("evaluation: {", "evaluation: {local_models: false, ")
)


@pytest.fixture
def across(tiny, tmp_path):
    made = Across(tmp_path / "across", tiny, TINY, sites=("north", "south", "west"), kind="folder")
    yield made
    made.end()


@dataclass
class Said:
    """How a command ended, and all that it printed."""

    returncode: int
    stderr: str


def started(across, *words: str):
    """Start a command; its output goes to a log of its own."""
    log = across.folder / f"command-{uuid.uuid4().hex[:8]}.log"
    process = PROCESSES.Process(target=run, args=([*words], str(log), str(across.folder)))
    process.start()
    return process, log


def command(across, *words: str) -> Said:
    process, log = started(across, *words)
    process.join(240)
    return Said(process.exitcode, log.read_text())


def offered_text(across, digest: str):
    """Return the file by which the hub offers a study."""
    return across.folder / "share" / "glob" / digest[:16] / "study" / "m"


@pytest.mark.slow
def test_policy_approval_and_revocation_across_processes(across):
    known = study_digest(read_study(across.folder / "study.yaml"))
    text = (across.folder / "west.yaml").read_text()
    (across.folder / "west.yaml").write_text(
        text.replace("policy: {", "policy: {max_rounds: 1, privacy: [dp_sgd], ")
    )
    across.start("hub")

    # A hospital whose policy says no: each reason here, none of them at the hub.
    refused = command(across, "train", "--site", "west.yaml", "--accept", known)
    assert refused.returncode == DECLINED
    assert "the study trains 2 rounds, this hospital allows 1 (policy.max_rounds)" in refused.stderr
    assert "this hospital requires 'dp_sgd' (policy.privacy)" in refused.stderr
    log = across.site_run("west") / "audit.jsonl"
    assert [entry["event"] for entry in entries(log)] == ["declined", "dropped out"]
    assert not list(across.site_run("west").rglob("*.ckpt"))

    # A hospital in which nobody has approved: the study in words, and nothing sent.
    asked = command(across, "train", "--site", "north.yaml")
    assert asked.returncode == DECLINED
    assert f"--accept {known}" in asked.stderr
    (page,) = (across.folder / "runs-north").glob("*.txt")
    assert known in page.read_text()
    wrong = command(across, "train", "--site", "north.yaml", "--accept", "0" * 64)
    assert wrong.returncode == DECLINED
    assert "approve that one" in wrong.stderr

    # A study that was changed on its way: north says so, writes it down, and takes part once the true
    # one is there. The hub, which would publish the true one again, is stopped meanwhile.
    offered = offered_text(across, known)
    true = offered.read_bytes()
    os.kill(across.running["hub"].pid, signal.SIGSTOP)
    try:
        offered.write_bytes(true.replace(b"rounds: 2", b"rounds: 9"))
        assert offered.read_bytes() != true
        tampered = command(across, "train", "--site", "north.yaml", "--accept", known)
    finally:
        os.kill(across.running["hub"].pid, signal.SIGCONT)
    assert tampered.returncode == 1
    assert "its signature by 'hub' is invalid" in tampered.stderr
    (line,) = entries(across.folder / "runs-north" / "audit.jsonl")
    assert (line["event"], line["site"]) == ("study refused", "north")
    assert "its signature by 'hub' is invalid" in line["reason"]
    assert verify(across.folder / "runs-north" / "audit.jsonl").signer == "north"
    across.until(lambda: offered.read_bytes() == true, "the hub publishes the true study again")

    for site in ("north", "south"):
        across.start(site, known)
    across.ended("hub", "north", "south")
    assert "dp_sgd" not in (across.run / "rounds.jsonl").read_text()

    # What each sent: signed, line by line, nothing but what is declared.
    for site in ("north", "south"):
        log = across.site_run(site) / "audit.jsonl"
        checked = verify(log, authority=Identity(across.folder / f"credentials-{site}").authority)
        assert (checked.signer, checked.signed) == (site, checked.lines)
        lines = list(entries(log))
        assert [entry["event"] for entry in lines][:2] == ["agreed", "began"]
        sent = [entry for entry in lines if entry["event"] == "sent"]
        assert [entry["round"] for entry in sent] == [1, 2, 3]
        assert all(
            entry["to"] == "hub, through shared storage" and len(entry["sha256"]) == 64 for entry in sent
        )
        assert all(entry["bytes"] > 5_000 for entry in sent[:2])
        names = {name for entry in sent for name in entry["scalars"]}
        assert all(name in TRAINING or name.startswith(("val/", "row/")) for name in names)
        verified = command(across, "audit", "verify", str(log), "--credentials", f"credentials-{site}")
        assert verified.returncode == 0, verified.stderr
    assert verify(across.run / "audit.jsonl").signer == "hub"

    # South withdraws. The study without it is another one, and north is asked again.
    words = ["hub", "study.yaml", "--enrolment", "enrolment", "--out", "again"]
    hub, log = started(across, *words, "--without", "south", "--former", "run")
    try:
        across.until((across.folder / "again" / "withdrawn.json").exists, "the withdrawal is written down")
        record = json.loads((across.folder / "again" / "withdrawn.json").read_text())
        assert (record["site"], record["joined"], record["retrained_from"]) == ("south", 1, 0)
        assert record["study_before"] == known
        across.until(offered_text(across, record["study"]).exists, "the new study is offered")
        command(across, "train", "--site", "west.yaml")  # declines again, so that nobody waits for it
        across.until(
            lambda: (
                command(across, "train", "--site", "north.yaml", "--accept", record["study"]).returncode == 0
            ),
            "north took part again",
        )
        hub.join(240)
    finally:
        hub.kill()
    assert hub.exitcode == 0, log.read_text()
    facts = json.loads((across.folder / "again" / "run.json").read_text())
    assert facts["withdrawn"] == record
    assert facts["sites"] == ["north", "west"]
    assert [entry["event"] for entry in entries(across.run / "audit.jsonl")][-1] == "withdrawn"
    merged = (across.folder / "again" / "rounds.jsonl").read_text()
    assert "south" not in merged
