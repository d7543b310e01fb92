"""The file of a privacy ledger: signed, chained JSON lines, and the last line's digest kept elsewhere.

Each line holds the digest of the line before it, and ends with its HMAC-SHA256 under a key that only the
hospital has, so that whoever can write to the file can still not write a line. A chain without its last lines
is a chain, too: so the number of lines and the last digest (the head) are kept in a second file, signed as
well, which lies elsewhere (a hospital's beside its secret). It is written after each line: a ledger may be
ahead of its head by what a power cut came between, never behind it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from medfed.errors import DECODING_ERRORS, LedgerError
from medfed.files import lock, private_folder, require_file_locks, utc_now, write_whole
from medfed.wire.audit_log import GENESIS, continues

require_file_locks("the privacy ledger")

# The end of a signed line: the signature covers what precedes this, closed with a brace.
_SIGNATURE = b',"signature":"'

# Prepended to what is signed, so that a line never passes for a head, nor a head for a line.
_LINE, _HEAD = b"medfed-1 ledger line\n", b"medfed-1 ledger head\n"

# The event by which a person took over lines that have no signature or no head.
ADOPTED = "adopted"

_RESTORE = (
    "Restore the ledger from a backup: without it the spent budget is unknown. If it is right as it is, "
    "which only someone who knows what was spent can say, take it over with `medfed audit ledger --adopt`"
)


@dataclass(frozen=True)
class Head:
    """The number of lines of a ledger, and the digest of the last one."""

    lines: int = 0
    sha256: str = GENESIS


@dataclass(frozen=True)
class LedgerFile:
    """Where a ledger is, and where its head. `key` signs both; a simulation has none, and signs nothing."""

    path: Path
    head: Path
    key: bytes = b""

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines, each checked against the one before, and the last ones against the head.

        Raises:
            LedgerError: naming the first line that was changed, removed, moved or not signed by this
                hospital; or if lines that the head counts are missing, or the head is.
        """
        # The head first: another process may append a line in between, and a ledger may be ahead of its head.
        known = self.read_head()
        entries = list(self._chain())
        known = known or self.read_head()
        if entries and known is None:
            raise LedgerError(
                f"privacy ledger: its head is missing ({len(entries)} lines are there), so nobody can tell "
                f"whether its last lines were cut off. {_RESTORE}"
            )
        if known is not None:
            self._check_head(known, entries)
        return [entry for entry, _ in entries]

    def append(self, fields: Mapping[str, Any]) -> None:
        """Append one line, and keep it as the head; both are on disk when this returns."""
        self._append(list(self._chain()), fields)

    def adopt(self) -> int:
        """Take over a ledger whose head or signatures are missing, and return how many lines it had.

        The chain must be intact. A signed line says from then on that the lines before it count.

        Raises:
            LedgerError: if a line was changed, removed or moved.
        """
        with self.locked():
            entries = list(self._chain(adopting=True))
            self._append(entries, {"event": ADOPTED})
        return len(entries)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the ledger among the hospital's processes; a process that dies releases the lock."""
        private_folder(self.path.parent)
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _append(self, entries: list[tuple[dict[str, Any], str]], fields: Mapping[str, Any]) -> None:
        if not self.key and any("signature" in entry for entry, _ in entries):
            raise LedgerError(
                "privacy ledger: its lines are signed with the hospital's secret, which is not given here; "
                "write to it through the site's own file"
            )
        if not entries and not self.head.exists():
            self._write_head(Head())
        previous = entries[-1][1] if entries else GENESIS
        entry = {"number": len(entries), "time": utc_now(), **fields, "previous": previous}
        line = self._signed(_LINE, msgspec.json.encode(entry))
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "rb+") as file:
            # A line that was cut by a power loss has no end; it is overwritten.
            size = file.read().rfind(b"\n") + 1
            file.seek(size)
            file.truncate()
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._write_head(Head(len(entries) + 1, hashlib.sha256(line).hexdigest()))

    def _write_head(self, head: Head) -> None:
        text = self._signed(_HEAD, msgspec.json.encode(head))
        write_whole(self.head, text, durable=True, mode=0o600)

    def _chain(self, *, adopting: bool = False) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield each line with its digest, checked against the one before and for its signature."""
        text = self.path.read_bytes() if self.path.exists() else b""
        previous, unsigned = GENESIS, 0
        # A line that was cut by a power loss has no end; nothing happened on it, because writers wait for it.
        whole = text[: text.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines()):
            try:
                entry = msgspec.json.decode(line)
            except DECODING_ERRORS:
                entry = None
            if not continues(entry, previous, number):
                raise LedgerError(
                    f"privacy ledger, line {number + 1}: does not continue the line before it; a line was "
                    "changed, removed or moved at or before this place. Restore the ledger from a backup: "
                    "without it the spent budget is unknown"
                )
            if self.key and "signature" not in entry:
                unsigned = unsigned or number + 1
            elif self.key:
                self._check_signature(_LINE, line, f"line {number + 1}")
                unsigned = 0 if entry["event"] == ADOPTED else unsigned
            previous = hashlib.sha256(line).hexdigest()
            yield entry, previous
        if unsigned and not adopting:
            raise LedgerError(
                f"privacy ledger, line {unsigned}: is not signed with this hospital's secret, as an earlier "
                f"medfed left it, or someone else wrote it. {_RESTORE}"
            )

    def _check_head(self, known: Head, entries: list[tuple[dict[str, Any], str]]) -> None:
        if known.lines > len(entries):
            gone = f"its last {known.lines - len(entries)} lines are" if entries else "the whole file is"
            raise LedgerError(
                f"privacy ledger: {gone} missing; the head that is kept elsewhere counts {known.lines}. "
                f"{_RESTORE}"
            )
        if known.lines and entries[known.lines - 1][1] != known.sha256:
            raise LedgerError(
                f"privacy ledger, line {known.lines}: is another one than the head that is kept elsewhere "
                f"says; the ledger was replaced from that line or before. {_RESTORE}"
            )

    def read_head(self) -> Head | None:
        """Return the head, or None if there is none.

        Raises:
            LedgerError: if it was changed.
        """
        if not self.head.exists():
            return None
        text = self.head.read_bytes()
        if self.key:
            self._check_signature(_HEAD, text, "the head")
        try:
            return msgspec.json.decode(text, type=Head)
        except DECODING_ERRORS:
            raise LedgerError(f"privacy ledger, the head: is damaged. {_RESTORE}") from None

    def _signed(self, context: bytes, text: bytes) -> bytes:
        if not self.key:
            return text
        return text[:-1] + _SIGNATURE + self._signature(context, text) + b'"}'

    def _check_signature(self, context: bytes, signed: bytes, what: str) -> None:
        text, _, signature = signed.rpartition(_SIGNATURE)
        if not hmac.compare_digest(signature, self._signature(context, text + b"}") + b'"}'):
            raise LedgerError(
                f"privacy ledger, {what}: its signature is not this hospital's; it was changed, or the "
                f"site's secret is another than when it was written. {_RESTORE}"
            )

    def _signature(self, context: bytes, text: bytes) -> bytes:
        return hmac.new(self.key, context + text, hashlib.sha256).hexdigest().encode()
