from __future__ import annotations

import pytest

from medfed.audit import GENESIS, AuditLog, verify
from medfed.errors import AuditError


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for number in range(4):
        log.write("sent", round=number)
    return path


def test_a_log_verifies_and_is_continued(log):
    number, head = verify(log)
    assert number == 4
    again = AuditLog(log)
    assert again.head == head
    again.write("merged", round=4)
    assert verify(log, head)[0] == 5


def test_an_empty_log_verifies(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert verify(tmp_path / "a") == (0, GENESIS)


def change(line: bytes) -> bytes:
    return line.replace(b'"round":1', b'"round":7')


@pytest.mark.parametrize(
    "tamper, line",
    [
        (lambda lines: [lines[0], change(lines[1]), *lines[2:]], 3),
        (lambda lines: [lines[0], *lines[2:]], 2),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [*lines[:3], b'{"number":3'], 4),
    ],
    ids=["changed", "removed", "moved", "cut"],
)
def test_a_changed_removed_or_moved_line_is_found(log, tamper, line):
    log.write_bytes(b"\n".join(tamper(log.read_bytes().splitlines())) + b"\n")
    with pytest.raises(AuditError, match=f"audit log, line {line}: "):
        verify(log)


def test_a_tail_that_was_cut_is_found_by_the_known_head(log):
    _, head = verify(log)
    log.write_bytes(b"\n".join(log.read_bytes().splitlines()[:3]) + b"\n")
    assert verify(log)[0] == 3
    with pytest.raises(AuditError, match="its tail was cut or rewritten"):
        verify(log, head)
