"""The manifest of a dossier: each file's digest, signed, and the verification of what somebody received.

A dossier is a folder or a zip of plain files. `manifest.json` lists them; `manifest.sig.json` holds the
Ed25519 signature (RFC 8032) of whoever made it over the manifest's bytes, with the certificate.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from medfed.errors import DECODING_ERRORS, AuditError, WireError
from medfed.files import write_whole
from medfed.pipeline.dossier.records import FileDigest
from medfed.wire.audit_log import VerifiedLog
from medfed.wire.signing import Identity, check_issued, check_signature, common_name

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig.json"

# Prepended to the manifest before it is signed, so that no other signature of this key is valid for it.
CONTEXT = b"medfed-1 dossier\n"

# What a dossier may hold: it is opened by people who did not make it.
MAX_FILES, MAX_BYTES = 50, 2 * 1024**3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BLOCK = 1 << 20


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The study and the weights that a dossier is about, and its files."""

    version: Literal[1] = 1
    study: str
    weights_sha256: str
    made: str
    files: list[FileDigest]


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    certificate: str
    signature: str


class VerifiedDossier(msgspec.Struct, frozen=True, kw_only=True):
    """A dossier whose files are those of its manifest, and who signed that; '' if nobody did."""

    manifest: Manifest
    sha256: str
    signer: str = ""
    certificate: bytes = b""

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the signer's certificate, in groups of four."""
        return VerifiedLog(0, "", certificate=self.certificate).fingerprint


def digest_file(path: Path, name: str = "") -> FileDigest:
    """Return a file's name (or another `name` for it), size and SHA-256."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(name or path.name, path.stat().st_size, sha256)


def write_manifest(
    folder: Path, *, study: str, weights_sha256: str, made: str, identity: Identity | None
) -> None:
    """Write the manifest of a folder's files into it, signed if there is an identity."""
    files = [digest_file(path) for path in sorted(folder.iterdir())]
    manifest = Manifest(study=study, weights_sha256=weights_sha256, made=made, files=files)
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    write_whole(folder / MANIFEST, text)
    if identity is not None:
        der = identity.certificate.public_bytes(Encoding.DER)
        proof = (base64.b64encode(one).decode() for one in (der, identity.sign(CONTEXT, text)))
        write_whole(folder / SIGNATURE, msgspec.json.encode(_Signature(*proof)))


def pack(folder: Path, out: Path) -> None:
    """Write a folder's files into a zip; equal files give an equal zip."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)


def is_dossier(place: Path) -> bool:
    """Return whether this is the folder or the zip of a dossier."""
    return place.suffix == ".zip" or (place / MANIFEST).is_file()


@contextmanager
def opened(place: Path) -> Iterator[Path]:
    """Yield the folder of a dossier; that of a zip is deleted afterwards.

    Raises:
        AuditError: if the zip is damaged, or holds what no dossier holds.
    """
    if place.is_dir():
        yield place
        return
    with tempfile.TemporaryDirectory() as made:
        try:
            with zipfile.ZipFile(place) as archive:
                _extract(archive, Path(made))
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise AuditError(
                f"dossier: the zip cannot be read ({type(error).__name__}); ask for it again"
            ) from None
        yield Path(made)


def _extract(archive: zipfile.ZipFile, folder: Path) -> None:
    members = archive.infolist()
    _check_names([one.filename for one in members])
    left = MAX_BYTES
    for member in members:
        with archive.open(member) as source, (folder / member.filename).open("wb") as target:
            # What the zip says of a size is not believed: what comes out is counted.
            while block := source.read(_BLOCK):
                left -= len(block)
                if left < 0:
                    raise AuditError(f"dossier: the zip unpacks to more than {MAX_BYTES} bytes; it is none")
                target.write(block)


def _check_names(names: list[str]) -> None:
    odd = sum(_NAME.fullmatch(name) is None for name in names)
    if odd or len(set(names)) != len(names) or len(names) > MAX_FILES:
        raise AuditError(
            f"dossier: of {len(names)} names of files {odd} are of no file of a dossier, or one is there "
            f"twice; a dossier is at most {MAX_FILES} files side by side, named by letters, digits and . _ -"
        )


def verify_dossier(folder: Path, authority: x509.Certificate | None = None) -> VerifiedDossier:
    """Return what a dossier's manifest says, having checked each file's digest and the signature.

    With the federation's `authority` the manifest must be signed with a certificate that it issued. Without,
    one that anybody made for the purpose passes: compare signer and fingerprint.

    Raises:
        AuditError: naming the first file that is missing, changed, or not of the manifest; or if the
            signature is missing, invalid or another federation's.
    """
    text = _small(folder, MANIFEST)
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except DECODING_ERRORS as error:
        raise AuditError(f"dossier: {MANIFEST} is none of a dossier: {error}") from None
    _check_files(folder, manifest)
    verified = VerifiedDossier(manifest=manifest, sha256=hashlib.sha256(text).hexdigest())
    if not (folder / SIGNATURE).exists():
        if authority is not None:
            raise AuditError(
                f"dossier: there is no {SIGNATURE}, and --credentials asks for one; ask its maker to sign it "
                "(`medfed export --dossier --credentials`)"
            )
        return verified
    certificate = _signer(_small(folder, SIGNATURE), text, authority)
    return msgspec.structs.replace(
        verified, signer=common_name(certificate), certificate=certificate.public_bytes(Encoding.DER)
    )


def _small(folder: Path, name: str) -> bytes:
    path = folder / name
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _BLOCK:
        raise AuditError(f"dossier: {name} is missing, or no plain file of at most {_BLOCK} bytes")
    return path.read_bytes()


def _check_files(folder: Path, manifest: Manifest) -> None:
    listed = {one.name: one for one in manifest.files}
    _check_names([one.name for one in manifest.files])
    there = {path.name for path in folder.iterdir()} - {MANIFEST, SIGNATURE}
    if unlisted := there - listed.keys():
        raise AuditError(
            f"dossier: {len(unlisted)} files or folders are not in {MANIFEST}: they were added; nobody "
            "vouches for them"
        )
    for name, one in listed.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise AuditError(f"dossier: '{name}' is in {MANIFEST} and is missing; ask for the dossier again")
        if digest_file(path) != one:
            raise AuditError(
                f"dossier: '{name}' is another file than the one in {MANIFEST}: it was changed after the "
                "dossier was made, or the manifest was"
            )


def _signer(proof: bytes, text: bytes, authority: x509.Certificate | None) -> x509.Certificate:
    """Return the certificate whose key signed a manifest."""
    try:
        signature = msgspec.json.decode(proof, type=_Signature)
        certificate = x509.load_der_x509_certificate(base64.b64decode(signature.certificate, validate=True))
        given = base64.b64decode(signature.signature, validate=True)
        check_signature(certificate, CONTEXT, text, given)
    except Exception:  # noqa: BLE001 - cryptography's errors have no common class
        raise AuditError(
            f"dossier: {SIGNATURE} is no signature of {MANIFEST}: one of them was changed"
        ) from None
    if authority is not None:
        try:
            check_issued(certificate, authority)
        except WireError as error:
            raise AuditError(f"dossier: {SIGNATURE}: {error}") from None
    return certificate


def discard(place: Path) -> None:
    """Delete a dossier that could not be finished."""
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
