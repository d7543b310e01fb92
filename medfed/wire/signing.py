"""Seals: texts signed with a party's Ed25519 key, and the verification of received ones.

A sealed text carries its signer's certificate, so whoever holds the federation's authority can verify it:
neither the broker nor the storage in between needs to be trusted. Standard formats only: X.509, PEM,
Ed25519 (RFC 8032). An identity is a folder with `identity.key` (the private key, mode 0600),
`identity.pem` (its certificate), `authority.pem`, `revoked.crl` (see `revocations.py`), and at the hub
`revoked.txt` (serial numbers, one per line). `medfed enrol` makes them.

Every certificate states its holder's role (`hub`, `broker` or `site`, as its organizational unit). A text is
accepted as the hub's only under the role `hub`, and as a site's only under the role `site`.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from medfed.errors import DECODING_ERRORS, ExchangeError, ForgedError, WireError
from medfed.files import write_whole
from medfed.wire import revocations
from medfed.wire.revocations import RevocationList, check_newer, read_revocations

log = logging.getLogger("medfed.wire.signing")

# The names of the hub and the broker in their certificates; no site may have these names.
HUB, BROKER = "hub", "broker"

# The files of a party's certificates that were replaced by a new one, in its folder.
EARLIER = "earlier.*.pem"

# The role of a hospital in its certificate; the roles of hub and broker are their names.
SITE = "site"

# Prepended to every signed text, so that no signature made for TLS or another program is valid as
# one of ours.
_CONTEXT = b"medfed-1 sealed\n"


T = TypeVar("T")


class Seal(Protocol):
    """How a party seals its texts, and opens those of others."""

    def seal(self, text: bytes) -> bytes:
        """Return the text with its proof of origin."""
        ...

    def open(self, sealed: bytes, party: str) -> bytes:
        """Return the text that `party` sealed.

        Raises:
            WireError: if it is damaged, changed, or not from that party.
        """
        ...

    def revocations(self) -> str:
        """Return the signed list of revoked certificates that this party has; empty without certificates."""
        ...

    def accept_revocations(self, offered: str) -> None:
        """Keep a list of revoked certificates, whose holders' texts are refused from now on.

        Raises:
            WireError: if it is missing, not the authority's, expired, or older than the one known here.
        """
        ...


class _Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    certificate: str = ""
    signature: str = ""


@dataclass(frozen=True)
class Unsigned:
    """No signatures: only if everyone who can write to the storage is trusted."""

    def seal(self, text: bytes) -> bytes:
        return _joined(text)

    def open(self, sealed: bytes, party: str) -> bytes:
        return _split(sealed)[1]

    def revocations(self) -> str:
        return ""

    def accept_revocations(self, offered: str) -> None:
        pass


@dataclass(frozen=True)
class Identity:
    """A party's key and certificate, and the authority that it trusts."""

    folder: Path
    # The newest list of revoked certificates that was accepted, in case the folder cannot be written.
    _accepted: list[bytes] = field(default_factory=list, compare=False, repr=False)

    @cached_property
    def certificate(self) -> x509.Certificate:
        """This party's certificate."""
        return self._certificate("identity.pem")

    @cached_property
    def authority(self) -> x509.Certificate:
        """The certificate of the federation's authority."""
        return self._certificate("authority.pem")

    def certificates_of(self, name: str) -> frozenset[bytes]:
        """Return this party's certificates, in DER, with those it had before; none if it has another name."""
        if not (self.folder / "identity.pem").exists() or self.name != name:
            return frozenset()
        earlier = (x509.load_pem_x509_certificate(one.read_bytes()) for one in self.folder.glob(EARLIER))
        return frozenset(one.public_bytes(Encoding.DER) for one in (self.certificate, *earlier))

    @property
    def name(self) -> str:
        """This party's name: a site's, or `hub`."""
        return common_name(self.certificate)

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        key = self._read(
            "identity.key", partial(load_pem_private_key, password=None), "make one with `medfed enrol`"
        )
        if not isinstance(key, Ed25519PrivateKey):
            raise ExchangeError(
                "exchange.credentials: identity.key is not an Ed25519 key; make one with `medfed enrol`"
            )
        return key

    def _certificate(self, file: str) -> x509.Certificate:
        return self._read(
            file, x509.load_pem_x509_certificate, "run `medfed enrol accept` with the coordinator's kit"
        )

    def _read(self, file: str, parse: Callable[[bytes], T], remedy: str) -> T:
        try:
            return parse((self.folder / file).read_bytes())
        except (OSError, ValueError) as error:
            raise ExchangeError(
                f"exchange.credentials: the folder has no usable {file} ({type(error).__name__}); {remedy}"
            ) from None

    def check(self) -> Identity:
        """Return this identity if its key, certificate and authority match and have not expired.

        Raises:
            ExchangeError: naming the condition that is not met.
        """
        if self._key.public_key() != self.certificate.public_key():
            raise ExchangeError(
                f"exchange.credentials: identity.key is not the key of {self.name}'s certificate; run "
                f"`medfed enrol site` and `accept` again"
            )
        if self.certificate.not_valid_after_utc < datetime.now(UTC):
            raise ExchangeError(
                f"exchange.credentials: {self.name}'s certificate expired on "
                f"{self.certificate.not_valid_after_utc:%Y-%m-%d}; ask the coordinator for a new kit "
                f"(`medfed enrol site` makes the request)"
            )
        check_issued(self.certificate, self.authority)
        if role(self.certificate) != role_of(self.name):
            raise ExchangeError(
                f"exchange.credentials: {self.name}'s certificate states the role "
                f"'{role(self.certificate)}', expected '{role_of(self.name)}'; it is from an older medfed: "
                "ask the coordinator for a new kit (`medfed enrol site` makes the request; `medfed enrol "
                "refresh` renews the hub's)"
            )
        return self

    def revocations(self) -> str:
        """Return the authority's list of revoked certificates, as text.

        Raises:
            ExchangeError: if there is none, or it has expired.
        """
        text: str = self._read(
            revocations.FILE,
            lambda data: data.decode("ascii"),
            "make one with `medfed enrol refresh` where authority.key is",
        )
        try:
            check_newer(read_revocations(text.encode(), self.authority), None)
        except WireError as error:
            raise ExchangeError(f"exchange.credentials: revoked.crl: {error}") from None
        return text

    def accept_revocations(self, offered: str) -> None:
        if not offered:
            raise WireError(
                "no list of revoked certificates came with it; update the hub's medfed, and make a list with "
                "`medfed enrol refresh`"
            )
        data = offered.encode()
        known = self._known_revocations()
        newest = read_revocations(data, self.authority)
        check_newer(newest, known)
        if known is not None and newest.number == known.number:
            return
        self._accepted[:] = [data]
        try:
            write_whole(self.folder / revocations.FILE, data)
        except OSError:
            log.warning(
                "the folder of credentials cannot be written: the list of revoked certificates is kept in "
                "memory, and after a restart an older one would be accepted"
            )

    def _known_revocations(self) -> RevocationList | None:
        """Return the newest list of revoked certificates here, or None."""
        path = self.folder / revocations.FILE
        held = [*self._accepted, *([path.read_bytes()] if path.exists() else [])]
        lists = [read_revocations(data, self.authority) for data in held]
        return max(lists, key=lambda one: one.number, default=None)

    def sign(self, context: bytes, text: bytes) -> bytes:
        """Return the Ed25519 signature of a text; a context per purpose keeps signatures apart."""
        return self._key.sign(context + text)

    def seal(self, text: bytes) -> bytes:
        return _joined(text, self.sign(_CONTEXT, text), self.certificate.public_bytes(Encoding.DER))

    def open(self, sealed: bytes, party: str) -> bytes:
        proof, text = _split(sealed)
        if not proof.signature:
            raise WireError(
                f"it should be signed by '{party}', but carries no signature; it was not sent by medfed there"
            )
        try:
            certificate = x509.load_der_x509_certificate(base64.b64decode(proof.certificate, validate=True))
            signature = base64.b64decode(proof.signature, validate=True)
        except Exception:  # noqa: BLE001 - cryptography's errors have no common class
            raise WireError(
                f"it should be signed by '{party}', but its certificate cannot be decoded"
            ) from None
        self._check_signer(certificate, party)
        try:
            check_signature(certificate, _CONTEXT, text, signature)
        except InvalidSignature:
            raise WireError(
                f"its signature by '{party}' is invalid: the text was changed after it was signed"
            ) from None
        return text

    def _check_signer(self, certificate: x509.Certificate, party: str) -> None:
        check_issued(certificate, self.authority)
        if common_name(certificate) != party:
            raise ForgedError(
                f"it is signed by '{common_name(certificate)}', expected '{party}': one party poses as "
                f"another"
            )
        if role(certificate) != role_of(party):
            raise ForgedError(
                f"the certificate of '{party}' states the role '{role(certificate)[:20]}', expected "
                f"'{role_of(party)}'; one from an older medfed needs a new kit (`medfed enrol site`)"
            )
        now = datetime.now(UTC)
        if now > certificate.not_valid_after_utc:
            raise WireError(
                f"the certificate of '{party}' expired on {certificate.not_valid_after_utc:%Y-%m-%d}; it "
                f"needs a new one"
            )
        if serial_number(certificate) in self._revoked():
            raise WireError(
                f"the certificate of '{party}' was revoked; it needs a new one to take part again"
            )

    def _revoked(self) -> frozenset[str]:
        # Read each time, so that a revocation takes effect at once and not after the hub's next start.
        path = self.folder / "revoked.txt"
        own = frozenset(path.read_text().split()) if path.exists() else frozenset()
        known = self._known_revocations()
        return own if known is None else own | known.serials


@dataclass(frozen=True)
class SessionSeal:
    """A party within one process, which signs with a key made for this session."""

    party: str
    keys: dict[str, Ed25519PrivateKey]

    def __post_init__(self) -> None:
        self.keys.setdefault(self.party, Ed25519PrivateKey.generate())

    def seal(self, text: bytes) -> bytes:
        return _joined(text, self.keys[self.party].sign(_CONTEXT + text))

    def open(self, sealed: bytes, party: str) -> bytes:
        proof, text = _split(sealed)
        try:
            known = self.keys[party].public_key()
            known.verify(base64.b64decode(proof.signature, validate=True), _CONTEXT + text)
        except (KeyError, InvalidSignature, ValueError):
            raise WireError(f"its signature by '{party}' is invalid") from None
        return text

    def revocations(self) -> str:
        return ""

    def accept_revocations(self, offered: str) -> None:
        pass


def load_seal(credentials: str) -> Seal:
    """Return the checked identity in a folder, or `Unsigned` if the path is empty."""
    return Identity(Path(credentials)).check() if credentials else Unsigned()


def common_name(certificate: x509.Certificate) -> str:
    """Return the name of the party to which a certificate was issued."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _claimed_name(certificate: x509.Certificate) -> str:
    """Return the name in a certificate that anybody may have made; '?' if it cannot be decoded."""
    try:
        return common_name(certificate)
    except ValueError:
        return "?"


def role(certificate: x509.Certificate) -> str:
    """Return the role that a certificate states: `hub`, `broker` or `site`; empty if it states none."""
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return str(units[0].value) if len(units) == 1 else ""


def role_of(party: str) -> str:
    """Return the role that the certificate of a party of this name must state."""
    return party if party in (HUB, BROKER) else SITE


def serial_number(certificate: x509.Certificate) -> str:
    """Return a certificate's serial number as the list of revoked ones holds it."""
    return f"{certificate.serial_number:x}"


def check_signature(certificate: x509.Certificate, context: bytes, text: bytes, signature: bytes) -> None:
    """Check a signature by `Identity.sign` against its signer's certificate.

    Raises:
        InvalidSignature: if it is not the signature of this text in this context by this certificate's key.
    """
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidSignature
    key.verify(signature, context + text)


def check_issued(certificate: x509.Certificate, authority: x509.Certificate) -> None:
    """Check that the federation's authority issued a certificate.

    Raises:
        WireError: if it did not.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # noqa: BLE001 - cryptography's errors have no common class
        raise WireError(
            f"the certificate of '{_claimed_name(certificate)}' is not from this federation's authority; was "
            f"it made by another `medfed enrol init`?"
        ) from None


def _joined(text: bytes, signature: bytes = b"", certificate: bytes = b"") -> bytes:
    """Return a text after a line with its proof of origin."""
    proof = _Proof(base64.b64encode(certificate).decode(), base64.b64encode(signature).decode())
    return msgspec.json.encode(proof) + b"\n" + text


def _split(sealed: bytes) -> tuple[_Proof, bytes]:
    head, newline, text = sealed.partition(b"\n")
    try:
        if not newline:
            raise msgspec.DecodeError("no second line")
        return msgspec.json.decode(head, type=_Proof), text
    except DECODING_ERRORS as error:
        raise WireError(f"a sealed text of {len(sealed)} bytes cannot be decoded: {error}") from None
