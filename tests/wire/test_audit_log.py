"""The audit log: its chain, its signatures, and a power cut in the middle of a line."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.cli import main
from medfed.deployment.enrolment import enrol
from medfed.errors import AuditError
from medfed.wire.audit_log import GENESIS, AuditLog, VerifiedLog, entries, verify
from medfed.wire.signing import Identity


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for number in range(4):
        log.write("sent", round=number)
    return path


def joined(federation, folder, site):
    request, _ = enrol.request(folder, site)
    enrol.sign(federation, request, folder / "kit")
    enrol.accept(folder, folder / "kit")
    return Identity(folder)


@pytest.fixture(scope="module")
def parties(tmp_path_factory):
    """A federation of north and south, and a north of another federation."""
    folder = tmp_path_factory.mktemp("parties")
    for name in ("lungs", "other"):
        enrol.init(folder / name, name, ["hub.example.org"])
    north = joined(folder / "lungs", folder / "north", "north")
    south = joined(folder / "lungs", folder / "south", "south")
    stranger = joined(folder / "other", folder / "stranger", "north")
    return north, south, stranger


@pytest.fixture
def signed(tmp_path, parties):
    path = tmp_path / "signed.jsonl"
    log = AuditLog(path, parties[0])
    for number in range(4):
        log.write("sent", round=number)
    return path


def test_a_log_verifies_and_is_continued(log):
    before = verify(log)
    assert before.lines == 4
    AuditLog(log).write("merged", round=4)
    assert verify(log, before.head).lines == 5


def test_an_empty_log_verifies(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert verify(tmp_path / "a") == VerifiedLog(0, GENESIS)


def change(line: bytes) -> bytes:
    return line.replace(b'"round":1', b'"round":7')


TAMPERS = {
    "changed": (lambda lines: [lines[0], change(lines[1]), *lines[2:]], 3),
    "removed": (lambda lines: [lines[0], *lines[2:]], 2),
    "first removed": (lambda lines: lines[1:], 1),
    "moved": (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
    "cut": (lambda lines: [*lines[:3], b'{"number":3'], 4),
    "twice": (lambda lines: [*lines, lines[3]], 5),
}


@pytest.mark.parametrize("tamper, line", TAMPERS.values(), ids=TAMPERS.keys())
def test_a_changed_removed_or_moved_line_is_found(log, tamper, line):
    log.write_bytes(b"\n".join(tamper(log.read_bytes().splitlines())) + b"\n")
    with pytest.raises(AuditError, match=f"audit log, line {line}: "):
        verify(log)


def test_a_tail_that_was_cut_is_found_by_the_known_head(log):
    head = verify(log).head
    log.write_bytes(b"\n".join(log.read_bytes().splitlines()[:3]) + b"\n")
    assert verify(log).lines == 3
    with pytest.raises(AuditError, match="its tail was cut or rewritten"):
        verify(log, head)


def test_a_log_is_its_owners_alone(log):
    assert log.stat().st_mode & 0o777 == 0o600


# ---------------------------------------------------------------------------------------------- signatures


def test_each_line_is_signed_with_the_sites_own_key_over_the_line_without_it(signed, parties):
    checked = verify(signed, authority=parties[0].authority)
    assert (checked.lines, checked.signed, checked.signer) == (4, 4, "north")
    # By an independent path: cryptography's own verify, on bytes cut by hand.
    line = signed.read_bytes().splitlines()[2]
    entry = json.loads(line)
    text = line[: line.index(b',"signature"')] + b"}"
    assert json.loads(text) == {key: value for key, value in entry.items() if key != "signature"}
    parties[0].certificate.public_key().verify(
        base64.b64decode(entry["signature"]), b"medfed-1 audit\n" + text
    )
    assert [("certificate" in one) for one in entries(signed)] == [True, False, False, False]


def forged(path, key_of, start=0):
    """Rewrite a log from line `start` with a valid chain and another key, as a thief of the file could."""
    lines = path.read_bytes().splitlines()
    unchanged, rest = lines[:start], [json.loads(line) for line in lines[start:]]
    path.write_bytes(b"".join(line + b"\n" for line in unchanged))
    log = AuditLog.__new__(AuditLog)
    AuditLog.__init__(log, path, key_of)
    for entry in rest:
        log.write(entry["event"], round=entry["round"] + 10)


class Thief:
    """Has the site's certificate, which is no secret, and a key of its own."""

    def __init__(self, certificate):
        self.certificate, self._key = certificate, Ed25519PrivateKey.generate()

    def sign(self, context, text):
        return self._key.sign(context + text)


def test_lines_written_without_the_sites_key_are_found(signed, parties):
    forged(signed, Thief(parties[0].certificate), start=2)
    with pytest.raises(AuditError, match="line 3: its signature is invalid"):
        verify(signed)


def test_lines_of_another_site_or_federation_are_found(signed, parties):
    north, south, stranger = parties
    copy = signed.read_bytes()
    forged(signed, south, start=2)
    with pytest.raises(AuditError, match="line 3: is signed by 'south', the lines before it by 'north'"):
        verify(signed)
    signed.write_bytes(copy)
    forged(signed, stranger)
    assert verify(signed).signer == "north"
    with pytest.raises(AuditError, match=r"line 1: .*not from this federation's authority"):
        verify(signed, authority=north.authority)


def test_signatures_cannot_be_taken_off(signed, parties):
    forged(signed, parties[0], start=4)
    lines = [{k: v for k, v in json.loads(x).items() if k not in ("signature", "certificate")}
             for x in signed.read_bytes().splitlines()]  # fmt: skip
    signed.unlink()
    log = AuditLog(signed)
    for entry in lines:
        log.write(entry["event"], round=entry["round"])
    assert verify(signed).signed == 0
    with pytest.raises(AuditError, match="line 1: has no signature"):
        verify(signed, authority=parties[0].authority)


def test_a_signed_log_is_not_continued_unsigned(signed):
    with pytest.raises(AuditError, match="it is signed by 'north', and no identity is given"):
        AuditLog(signed)


def test_a_renewed_certificate_goes_on(tmp_path, parties, signed):
    folder = tmp_path / "renewed"
    renewed = joined(parties[0].folder.parent / "lungs", folder, "north")
    AuditLog(signed, renewed).write("sent", round=4)
    assert verify(signed, authority=renewed.authority).signed == 5
    assert "certificate" in list(entries(signed))[4]


def test_a_log_rewritten_with_another_certificate_of_the_same_name_is_found(tmp_path, parties, signed):
    north, other = parties[0], joined(parties[0].folder.parent / "lungs", tmp_path / "another", "north")
    own = north.certificates_of("north")
    assert verify(signed, authority=north.authority, certificates=own).lines == 4
    forged(signed, other)
    assert verify(signed, authority=north.authority).signer == "north"
    with pytest.raises(
        AuditError, match="line 1: is signed with another certificate of 'north' than those in"
    ):
        verify(signed, authority=north.authority, certificates=own)
    words = ["audit", "verify", str(signed), "--credentials", str(north.folder)]
    output = CliRunner().invoke(main, words)
    assert output.exit_code == 1
    assert "is signed with another certificate of 'north'" in output.output


def test_lines_from_before_a_renewal_bear_an_earlier_certificate(tmp_path, parties):
    federation, folder = parties[0].folder.parent / "lungs", tmp_path / "renewing"
    AuditLog(tmp_path / "log", joined(federation, folder, "north")).write("sent", round=1)
    renewed = joined(federation, folder, "north")
    AuditLog(tmp_path / "log", renewed).write("sent", round=2)
    own = renewed.certificates_of("north")
    assert len(own) == 2
    assert verify(tmp_path / "log", authority=renewed.authority, certificates=own).signed == 2
    assert renewed.certificates_of("south") == frozenset()


# ---------------------------------------------------------------------------------------------- a power cut


def test_a_power_cut_at_any_byte_of_a_line_leaves_a_log_that_goes_on(tmp_path, parties, signed):
    whole = signed.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (*range(start + 1, len(whole), 37), len(whole) - 1):
        signed.write_bytes(whole[:cut])
        with pytest.raises(AuditError, match=r"line 4: is incomplete .* the 3 lines before it are valid"):
            verify(signed)
        AuditLog(signed, parties[0]).write("sent", round=9)
        checked = verify(signed, authority=parties[0].authority)
        assert checked.lines == 5
        *_, repaired, after = entries(signed)
        assert (repaired["event"], repaired["bytes"]) == ("repaired", cut - start)
        assert (after["event"], after["round"]) == ("sent", 9)
        torn = signed.with_suffix(".torn")
        assert torn.read_bytes() == whole[start:cut] + b"\n"
        torn.unlink()


def test_zero_bytes_that_a_power_cut_left_are_no_line(log):
    whole = log.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    zeros = b"\0" * 40
    for left in (whole + zeros, whole[:start] + zeros + whole[start + 40 :]):
        log.write_bytes(left)
        AuditLog(log).write("sent", round=9)
        assert [entry["event"] for entry in entries(log)][-2:] == ["repaired", "sent"]
        verify(log)
        log.write_bytes(whole)


def test_a_zero_byte_further_up_is_a_changed_line(log):
    data = log.read_bytes()
    log.write_bytes(b"\0" + data[1:])
    with pytest.raises(AuditError, match="line 1: not JSON"):
        AuditLog(log).write("sent")


def test_threads_and_processes_may_share_a_log(log):
    def write(own: AuditLog) -> None:
        for number in range(20):
            own.write("sent", round=number)

    threads = [threading.Thread(target=write, args=(AuditLog(log),)) for _ in range(3)]
    program = "import sys; from pathlib import Path; from medfed.wire.audit_log import AuditLog\n"
    program += "log = AuditLog(Path(sys.argv[1]))\nfor n in range(20): log.write('sent', round=n)"
    other = subprocess.Popen([sys.executable, "-c", program, str(log)], env={**os.environ})
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait(60) == 0
    assert verify(log).lines == 84


# ---------------------------------------------------------------------------------------------- commands


def test_the_command_prints_lines_signer_and_head(signed, log, parties):
    run = CliRunner().invoke
    output = run(main, ["audit", "verify", str(signed), "--credentials", str(parties[1].folder)])
    assert output.exit_code == 0
    assert "4 lines are signed by 'north', certificate " in output.output
    assert ", issued in this federation" in output.output
    assert "without --head nobody can tell whether lines were cut off at the end" in output.output
    head = verify(signed).head
    assert "without --head" not in run(main, ["audit", "verify", str(signed), "--head", head]).output
    assert verify(signed).head in output.output
    assert "no line is signed" in run(main, ["audit", "verify", str(log)]).output
    lost = run(main, ["audit", "verify", str(log), "--head", "0" * 63 + "1"])
    assert lost.exit_code == 1
    assert "medfed: audit log: none of its 4 lines has the known digest" in lost.output
    assert "no audit log" in run(main, ["audit", "verify", "nowhere"]).output


def test_several_lines_at_once_are_a_chain_of_signed_lines_that_waits_once(tmp_path, parties, monkeypatch):
    waited, flush = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (waited.append(file), flush(file)))
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, parties[0])
    log.write_all([])
    assert not path.exists()
    log.write("joined", round=1)
    log.write_all([("merged", {"site": name}) for name in ("a", "b", "c")])
    log.write("published", round=1)
    assert len(waited) == 3
    assert [entry["event"] for entry in entries(path)] == ["joined", *["merged"] * 3, "published"]
    assert [entry["number"] for entry in entries(path)] == [0, 1, 2, 3, 4]
    assert ["certificate" in entry for entry in entries(path)] == [True, False, False, False, False]
    assert verify(path) == AuditLog(path, parties[0])._verified
    assert (verify(path).signed, verify(path).head) == (5, log.head)


def test_a_power_cut_within_several_lines_keeps_those_that_are_whole(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.write_all([("merged", {"site": name}) for name in ("a", "b", "c")])
    path.write_bytes(path.read_bytes()[:-5])
    log.write_all([("merged", {"site": "c"}), ("merged", {"site": "d"})])
    written = [(entry["event"], entry.get("site")) for entry in entries(path)]
    assert written == [("merged", "a"), ("merged", "b"), ("repaired", None), ("merged", "c"), ("merged", "d")]
    assert verify(path).lines == 5
