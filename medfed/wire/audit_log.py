"""The audit log: one signed, chained JSON line for everything that crossed a hospital's wall.

Each line holds `previous`, the SHA-256 of the line before it, so that a changed, missing or reordered line
breaks the chain at a known place. With a site's identity each line ends with its Ed25519 signature (RFC
8032) over the line without it, so that nobody else can rewrite the log; the first signed line, and the
first after a renewal, holds the certificate. A truncated log is still a valid chain, and so is one that its
own writer wrote anew: only someone who keeps a `head` elsewhere can notice. So hub and sites keep each
other's: each model carries the hub's head and each update the site's, and whoever receives it logs it
(`runs/provenance.py` compares them). No line holds anything about a patient: only rounds, sites,
sizes, digests and reasons.

A line is on disk before the event that it records happens. So an incomplete last line, as a power cut leaves
it, records nothing that happened: it is moved to `audit.torn` beside the log and recorded as a `repaired`
line, and logging continues.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from medfed.errors import DECODING_ERRORS, AuditError, WireError
from medfed.files import lock, require_file_locks
from medfed.wire.signing import check_issued, check_signature, common_name, serial_number
from medfed.wire.untrusted_text import cleaned

require_file_locks("the audit log")

# The `previous` of the first line.
GENESIS = "0" * 64

# Prepended to every signed line, so that no signature made for another purpose is valid for a log.
_CONTEXT = b"medfed-1 audit\n"

# The end of a signed line: the signature covers what precedes this, closed with a brace.
_SIGNATURE = b',"signature":"'


class Signer(Protocol):
    """Whose key signs a log, such as `signing.Identity`."""

    @property
    def certificate(self) -> x509.Certificate: ...

    def sign(self, context: bytes, text: bytes) -> bytes: ...


@dataclass(frozen=True)
class VerifiedLog:
    """The result of verifying a log: how many lines, the last one's digest, who signed how many."""

    lines: int
    head: str
    signer: str = ""
    signed: int = 0
    certificate: bytes = b""

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the certificate that signed last, in groups of four."""
        text = hashlib.sha256(self.certificate).hexdigest() if self.certificate else ""
        return " ".join(text[k : k + 4] for k in range(0, len(text), 4))


@dataclass(frozen=True)
class _Signers:
    """Whose signatures a log may bear; see `verify`."""

    authority: x509.Certificate | None = None
    certificates: frozenset[bytes] = frozenset()


_ANYONE = _Signers()


class AuditLog:
    """An append-only log in one file, readable by its owner only; threads and processes may share it.

    Raises:
        AuditError: if an existing log is invalid, or is signed and no identity is given to continue it.
    """

    def __init__(self, path: Path | None, identity: Signer | None = None) -> None:
        self._path = path
        self._identity = identity
        self._lock = threading.Lock()
        self._verified = VerifiedLog(0, GENESIS)
        self._size = 0
        if path is not None and path.exists():
            self._read(path.read_bytes())

    @property
    def is_written(self) -> bool:
        """Whether there is a file; without one nothing is written."""
        return self._path is not None

    @property
    def head(self) -> str:
        """The digest of the last line that this process knows; empty if nothing is logged."""
        with self._lock:
            return self._verified.head if self._verified.lines else ""

    def write(self, event: str, **fields: Any) -> None:
        """Append one line; it is on disk when this returns."""
        self.write_all([(event, fields)])

    def write_all(self, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Append one line for each event with its fields, in this order; all are on disk when this returns.

        So many lines wait for the disk once.
        """
        if self._path is None or not events:
            return
        with self._lock, open(self._path, "ab", opener=_open_private) as file:
            lock(file)
            # Not tell(): its value is from before the lock was acquired.
            if os.fstat(file.fileno()).st_size != self._size:
                # Another process wrote, or a power cut tore the last line.
                self._repair(self._path, file, self._read(self._path.read_bytes()))
            self._append(file, events)

    def _read(self, data: bytes) -> bytes:
        """Take over the state of the log and return its torn last line."""
        lines, torn = _split_torn(data)
        self._verified, self._size = _verify_lines(lines), len(lines)
        if self._verified.signed and self._identity is None:
            raise AuditError(
                f"audit log: it is signed by '{self._verified.signer}', and no identity is given to continue "
                f"it; name the site's credentials, or start another log"
            )
        return torn

    def _repair(self, path: Path, file: BinaryIO, torn: bytes) -> None:
        """Move a torn last line to a file beside the log, and record that."""
        if not torn:
            return
        with open(path.with_suffix(".torn"), "ab", opener=_open_private) as aside:
            aside.write(torn + b"\n")
            _flush(aside)
        file.truncate(self._size)
        repaired = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
        self._append(file, [("repaired", repaired)])

    def _append(self, file: BinaryIO, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        lines, last = [], self._verified
        for event, fields in events:
            line, last = self._line_after(last, event, fields)
            lines.append(line + b"\n")
        data = b"".join(lines)
        file.write(data)
        _flush(file)
        self._verified = last
        self._size += len(data)

    def _line_after(self, last: VerifiedLog, event: str, fields: dict[str, Any]) -> tuple[bytes, VerifiedLog]:
        """Return the line that continues a log, and what the log holds then."""
        entry = {
            "number": last.lines,
            "time": datetime.now(UTC).isoformat(),
            "event": event,
            **cleaned(fields),
        }
        if self._identity is None:
            line = msgspec.json.encode({**entry, "previous": last.head})
            return line, VerifiedLog(last.lines + 1, _digest(line))
        own = self._identity.certificate
        certificate = own.public_bytes(Encoding.DER)
        if certificate != last.certificate:
            entry["certificate"] = base64.b64encode(certificate).decode()
        text = msgspec.json.encode({**entry, "previous": last.head})
        signature = base64.b64encode(self._identity.sign(_CONTEXT, text))
        line = text[:-1] + _SIGNATURE + signature + b'"}'
        signed = last.signed + 1
        return line, VerifiedLog(last.lines + 1, _digest(line), common_name(own), signed, certificate)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _split_torn(data: bytes) -> tuple[bytes, bytes]:
    """Return the complete lines of a log, and the rest, which a power cut left.

    The rest is what no newline ends; or a last line with a zero byte, which JSON never holds and a file
    system leaves where a file had grown before its content was written.
    """
    size = data.rfind(b"\n") + 1
    start = data.rfind(b"\n", 0, max(size - 1, 0)) + 1
    if size == len(data) and b"\0" in data[start:size]:
        size = start
    return data[:size], data[size:]


# --------------------------------------------------------------------------------------------- verification


def verify(
    path: Path,
    head: str | None = None,
    authority: x509.Certificate | None = None,
    certificates: Collection[bytes] = (),
) -> VerifiedLog:
    """Return what a log holds, having checked every link and every signature.

    Without `head`, a digest that someone kept elsewhere, nobody can tell whether lines were cut off at the
    end, or all of them written anew by the log's own writer. With the federation's `authority` every line
    must be signed with a certificate that it issued; with the site's own `certificates` (DER), with one of
    these, and not even with another that the authority issued under the same name. Without both, a log that
    anyone wrote anew, with a certificate made for that, passes: compare signer and fingerprint.

    Raises:
        AuditError: naming the first line that was changed, removed, moved or badly signed; or if the tail
            after the last known `head` is missing.
    """
    lines, torn = _split_torn(path.read_bytes())
    verified = _verify_lines(lines, head, _Signers(authority, frozenset(certificates)))
    if torn:
        raise AuditError(
            f"audit log, line {verified.lines + 1}: is incomplete ({len(torn)} bytes), as a power cut leaves "
            f"it; the {verified.lines} lines before it are valid. medfed repairs this when it next writes to "
            f"the log"
        )
    return verified


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a log's complete lines; check it with `verify` first."""
    for line in _split_torn(path.read_bytes())[0].split(b"\n")[:-1]:
        yield msgspec.json.decode(line)


def line_digests(path: Path) -> list[str]:
    """Return the digest of each complete line of a log, in order: what its `head` was after that line."""
    return [_digest(line) for line in _split_torn(path.read_bytes())[0].split(b"\n")[:-1]]


def _verify_lines(lines: bytes, head: str | None = None, signers: _Signers = _ANYONE) -> VerifiedLog:
    verified, head_seen = VerifiedLog(0, GENESIS), head in (None, GENESIS)
    for line in lines.split(b"\n")[:-1]:
        verified = _verify_next(verified, line, signers)
        head_seen = head_seen or verified.head == head
    if not head_seen:
        raise AuditError(
            f"audit log: none of its {verified.lines} lines has the known digest {str(head)[:12]}; its tail "
            f"was cut or rewritten"
        )
    return verified


def continues(entry: object, previous: str, number: int) -> bool:
    """Return whether a line's content continues a chain with this last digest and so many lines."""
    return isinstance(entry, dict) and (entry.get("previous"), entry.get("number")) == (previous, number)


def _verify_next(before: VerifiedLog, line: bytes, signers: _Signers) -> VerifiedLog:
    """Return the result after one more line, which must continue the one before."""
    number = before.lines + 1
    try:
        entry = msgspec.json.decode(line)
    except DECODING_ERRORS:
        raise AuditError(f"audit log, line {number}: not JSON; the line was cut or changed") from None
    if not continues(entry, before.head, before.lines):
        raise AuditError(
            f"audit log, line {number}: does not continue the line before it; a line was changed, removed or "
            f"moved at or before this place"
        )
    if "signature" in entry:
        return _verify_signed(before, line, entry, signers)
    if before.signed:
        raise AuditError(
            f"audit log, line {number}: has no signature; those before it are signed by '{before.signer}'"
        )
    if signers.authority is not None or signers.certificates:
        raise AuditError(
            f"audit log, line {number}: has no signature; the log is checked against the site's "
            "credentials, which requires one on every line"
        )
    return VerifiedLog(number, _digest(line))


def _verify_signed(before: VerifiedLog, line: bytes, entry: dict[str, Any], signers: _Signers) -> VerifiedLog:
    number = before.lines + 1
    try:
        der, certificate = _check_line_signature(before, line, entry, signers)
    except (InvalidSignature, ValueError, TypeError):
        raise AuditError(
            f"audit log, line {number}: its signature is invalid; the line was changed, or written by "
            f"someone without the site's key"
        ) from None
    except WireError as error:
        raise AuditError(f"audit log, line {number}: {error}") from None
    name = common_name(certificate)
    if before.signer and name != before.signer:
        raise AuditError(
            f"audit log, line {number}: is signed by '{name}', the lines before it by '{before.signer}'"
        )
    if signers.certificates and der not in signers.certificates:
        raise AuditError(
            f"audit log, line {number}: is signed with another certificate of '{name}' than those in the "
            f"credentials, serial number {serial_number(certificate)}; the log was rewritten with it, or the "
            "credentials are not this site's"
        )
    return VerifiedLog(number, _digest(line), name, before.signed + 1, der)


def _check_line_signature(
    before: VerifiedLog, line: bytes, entry: dict[str, Any], signers: _Signers
) -> tuple[bytes, x509.Certificate]:
    """Return the certificate (also as DER) whose key signed a line; raise if the signature is invalid."""
    der = base64.b64decode(entry["certificate"]) if "certificate" in entry else before.certificate
    certificate = x509.load_der_x509_certificate(der)
    text, _, encoded = line.rpartition(_SIGNATURE)
    signature = base64.b64decode(encoded.removesuffix(b'"}'), validate=True)
    check_signature(certificate, _CONTEXT, text + b"}", signature)
    if signers.authority is not None and der != before.certificate:
        check_issued(certificate, signers.authority)
    return der, certificate
