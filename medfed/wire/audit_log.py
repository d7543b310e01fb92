"""The audit log: one JSON line for everything that crossed a hospital's wall, each chained to the
one before and signed.

A line holds `previous`, the SHA-256 of the line before it, so that a changed, missing or reordered line
breaks the chain at a known place. With a site's identity each line ends with its Ed25519 signature (RFC
8032) over the line without it, so that nobody else can write a log anew; the first such line, and the
first after a renewal, holds the certificate. A tail that was cut off leaves a chain that holds: only
someone who keeps the last `head` elsewhere can tell. No line holds anything about a patient: rounds,
sites, sizes, digests and reasons.

A line is on disk before what it tells of happens. So what a power cut leaves of a last line
tells of nothing that
happened: it is moved to `audit.torn` beside the log and written down as a `mended` line, and the log goes on.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from medfed.errors import AuditError, WireError
from medfed.files import lock, require_file_locks
from medfed.wire.signing import check_issued, check_signature, common_name

require_file_locks("the audit log")

# What the first line calls its predecessor.
GENESIS = "0" * 64

# Before every line that is signed, so that no signature made for another purpose passes for one of the log.
_CONTEXT = b"medfed-1 audit\n"

# How a signed line ends: its signature is over what stands before this, closed with a brace.
_SIGNATURE = b',"signature":"'


class Signer(Protocol):
    """Whose key signs a log: `signing.Identity` is one."""

    @property
    def certificate(self) -> x509.Certificate: ...

    def sign(self, context: bytes, text: bytes) -> bytes: ...


@dataclass(frozen=True)
class Checked:
    """What a check of a whole log found: its lines, the last one's digest, and who signed how many of them."""

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


class AuditLog:
    """An append-only log in one file, readable by its owner only; threads and processes may share it.

    Raises:
        AuditError: if the log that is there does not hold, or is signed and no identity is given to go on with.
    """

    def __init__(self, path: Path | None, identity: Signer | None = None) -> None:
        self._path = path
        self._identity = identity
        self._lock = threading.Lock()
        self._checked = Checked(0, GENESIS)
        self._size = 0
        if path is not None and path.exists():
            self._read(path.read_bytes())

    @property
    def head(self) -> str:
        """The digest of the last line; whoever keeps it can later prove that no line was cut off."""
        return self._checked.head

    def write(self, event: str, **fields: Any) -> None:
        """Append one line, on disk when this returns."""
        if self._path is None:
            return
        with self._lock, open(self._path, "ab", opener=_owners) as file:
            lock(file)
            if _length(file) != self._size:  # another process wrote, or a power cut tore the last line
                self._read(self._path.read_bytes())
                self._mend(file)
            self._append(file, event, fields)

    def _read(self, data: bytes) -> None:
        whole, _ = _torn(data)
        self._checked, self._size = _follow(data[:whole]), whole
        if self._checked.signed and self._identity is None:
            raise AuditError(
                f"audit log: it is signed by '{self._checked.signer}', and no identity is given to go on with; name the "
                f"site's credentials, or begin another log"
            )

    def _mend(self, file: BinaryIO) -> None:
        assert self._path is not None
        if _length(file) == self._size:
            return
        torn = self._path.read_bytes()[self._size :]
        with open(self._path.with_suffix(".torn"), "ab", opener=_owners) as aside:
            aside.write(torn + b"\n")
            _flush(aside)
        file.truncate(self._size)
        self._append(file, "repaired", {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()})

    def _append(self, file: BinaryIO, event: str, fields: dict[str, Any]) -> None:
        before, signature, certificate = self._checked, b"", self._checked.certificate
        time = datetime.now(UTC).isoformat()
        entry: dict[str, Any] = {"number": before.lines, "time": time, "event": event, **fields}
        signer = before.signer
        if self._identity is not None:
            mine = self._identity.certificate
            certificate, signer = _der(mine), common_name(mine)
            if certificate != before.certificate:
                entry["certificate"] = base64.b64encode(certificate).decode()
        line = msgspec.json.encode({**entry, "previous": before.head})
        if self._identity is not None:
            signature = base64.b64encode(self._identity.sign(_CONTEXT, line))
            line = line[:-1] + _SIGNATURE + signature + b'"}'
        file.write(line + b"\n")
        _flush(file)
        signed = before.signed + bool(signature)
        self._checked = Checked(
            before.lines + 1, hashlib.sha256(line).hexdigest(), signer, signed, certificate
        )
        self._size += len(line) + 1


def _owners(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _length(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size  # not tell(): that is from before the lock was had


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _torn(data: bytes) -> tuple[int, bytes]:
    """Return how many bytes of a log are whole lines, and what a power cut left of a last one.

    That is what no newline ends; or a last line with a zero byte, which JSON never holds and a file system
    leaves where a file had grown and its content was not written yet.
    """
    whole = data.rfind(b"\n") + 1
    start = data.rfind(b"\n", 0, max(whole - 1, 0)) + 1
    if whole == len(data) and b"\0" in data[start:whole]:
        whole = start
    return whole, data[whole:]


# ---------------------------------------------------------------------------------------------- checking


def verify(path: Path, head: str | None = None) -> tuple[int, str]:
    """Return how many lines a log has and the digest of its last one, having checked
    every link and signature.

    Raises:
        AuditError: see `examine`.
    """
    checked = examine(path, head)
    return checked.lines, checked.head


def examine(path: Path, head: str | None = None, authority: x509.Certificate | None = None) -> Checked:
    """Return what a whole log holds, having checked every link and every signature.

    With the federation's `authority` every line must be signed, by a certificate that it issued. Without
    one a log that was written anew from its first line, with a certificate made for that, passes: look
    at signer and fingerprint.

    Raises:
        AuditError: naming the first line that was changed, removed, moved or badly signed, or a tail that is missing
            when the last known `head` is given.
    """
    data = path.read_bytes()
    whole, torn = _torn(data)
    checked = _follow(data[:whole], head, authority)
    if torn:
        raise AuditError(
            f"audit log, line {checked.lines + 1}: is cut off in its middle ({len(torn)} bytes), as a power cut leaves it; "
            f"the {checked.lines} lines before it hold. medfed mends this when it next writes to the log"
        )
    return checked


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a log's whole lines; check it with `examine` first."""
    data = path.read_bytes()
    for line in data[: _torn(data)[0]].split(b"\n")[:-1]:
        yield msgspec.json.decode(line)


def _follow(data: bytes, head: str | None = None, authority: x509.Certificate | None = None) -> Checked:
    found, known = Checked(0, GENESIS), head in (None, GENESIS)
    for line in data.split(b"\n")[:-1]:
        found = _link(found, line, authority)
        known = known or found.head == head
    if not known:
        raise AuditError(
            f"audit log: none of its {found.lines} lines has the known digest {str(head)[:12]}; its tail was cut or "
            f"rewritten"
        )
    return found


def _link(before: Checked, line: bytes, authority: x509.Certificate | None) -> Checked:
    """Return what is known after one more line, which must continue the one before."""
    number = before.lines + 1
    try:
        entry = msgspec.json.decode(line)
    except msgspec.DecodeError:
        raise AuditError(f"audit log, line {number}: not JSON; the line was cut or changed") from None
    if (
        not isinstance(entry, dict)
        or entry.get("previous") != before.head
        or entry.get("number") != before.lines
    ):
        raise AuditError(
            f"audit log, line {number}: does not continue the line before it; a line was changed, removed or moved "
            f"at or before this place"
        )
    head = hashlib.sha256(line).hexdigest()
    if "signature" not in entry:
        if before.signed or authority is not None:
            raise AuditError(
                f"audit log, line {number}: carries no signature; {_unsigned(before, authority)}"
            )
        return Checked(number, head)
    try:
        der = base64.b64decode(entry["certificate"]) if "certificate" in entry else before.certificate
        certificate = x509.load_der_x509_certificate(der)
        text, _, signature = line.rpartition(_SIGNATURE)
        check_signature(
            certificate, _CONTEXT, text + b"}", base64.b64decode(signature.removesuffix(b'"}'), validate=True)
        )
        if authority is not None and der != before.certificate:
            check_issued(certificate, authority)
    except (InvalidSignature, binascii.Error, ValueError, TypeError):
        raise AuditError(
            f"audit log, line {number}: its signature does not hold; the line was changed, or written by someone without "
            f"the site's key"
        ) from None
    except WireError as error:
        raise AuditError(f"audit log, line {number}: {error}") from None
    name = common_name(certificate)
    if before.signer and name != before.signer:
        raise AuditError(
            f"audit log, line {number}: is signed by '{name}', the lines before it by '{before.signer}'"
        )
    return Checked(number, head, name, before.signed + 1, der)


def _unsigned(before: Checked, authority: x509.Certificate | None) -> str:
    if before.signed:
        return f"those before it are signed by '{before.signer}'"
    return "the log is held to the federation's authority, which asks for one on every line"


def _der(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)
