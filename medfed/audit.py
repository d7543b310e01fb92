"""The audit log: one JSON line for everything that crossed a hospital's wall, each chained to the one before.

A line holds `previous`, the SHA-256 of the line before it, so that a changed, missing or reordered line breaks the
chain at a known place. No line holds anything about a patient: rounds, sites, sizes, digests and reasons.
"""

from __future__ import annotations

import hashlib
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from medfed.errors import AuditError

# What the first line calls its predecessor.
GENESIS = "0" * 64


class AuditLog:
    """An append-only log in one file; threads of one process may share it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._head = GENESIS
        self._number = 0
        if path is not None and path.exists():
            self._number, self._head = verify(path)

    @property
    def head(self) -> str:
        """The digest of the last line; whoever keeps it can later prove that no line was cut off."""
        return self._head

    def write(self, event: str, **fields: Any) -> None:
        """Append one line, on disk when this returns."""
        if self._path is None:
            return
        with self._lock:
            entry = {"number": self._number, "time": datetime.now(UTC).isoformat(), "event": event, **fields}
            line = msgspec.json.encode({**entry, "previous": self._head})
            with self._path.open("ab") as file:
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._head = hashlib.sha256(line).hexdigest()
            self._number += 1


def verify(path: Path, head: str | None = None) -> tuple[int, str]:
    """Return how many lines a log has and the digest of its last one, having checked every link.

    Raises:
        AuditError: naming the first line that was changed, removed or moved, or a tail that is missing when the last
            known `head` is given.
    """
    previous, number, known = GENESIS, 0, head in (None, GENESIS)
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            entry = msgspec.json.decode(line)
        except msgspec.DecodeError:
            raise AuditError(f"audit log, line {number}: not JSON; the line was cut or changed") from None
        if (
            not isinstance(entry, dict)
            or entry.get("previous") != previous
            or entry.get("number") != number - 1
        ):
            raise AuditError(
                f"audit log, line {number}: does not continue the line before it; a line was changed, removed or moved "
                f"at or before this place"
            )
        previous = hashlib.sha256(line).hexdigest()
        known = known or previous == head
    if not known:
        raise AuditError(
            f"audit log: none of its {number} lines has the known digest {str(head)[:12]}; its tail was cut or rewritten"
        )
    return number, previous
