"""The list of revoked certificates: signed by the federation's authority, dated, and sent with each model.

An X.509 certificate revocation list (RFC 5280), readable with `openssl crl`. The authority signs it and not
the hub, so that a hub cannot leave a certificate out, and its number grows, so that an older list is known
for one. It is valid for `VALID_DAYS`: a hub that hides a newer one is noticed by then at the latest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from medfed.errors import WireError

# The list's file in a folder of credentials.
FILE = "revoked.crl"

# How long a list is valid. Every `medfed enrol sign`, `revoke` and `refresh` makes a new one.
VALID_DAYS = 365


@dataclass(frozen=True)
class RevocationList:
    """The serial numbers of revoked certificates (hex), as of a date."""

    number: int
    issued: datetime
    expires: datetime
    serials: frozenset[str]


def write_revocations(
    key: Ed25519PrivateKey, authority: x509.Certificate, serials: Iterable[str], previous: bytes = b""
) -> bytes:
    """Return a new signed list (PEM), with a larger number than the previous one's."""
    now = datetime.now(UTC).replace(microsecond=0)
    number, dates = int(now.timestamp()), {}
    if previous:
        former = x509.load_pem_x509_crl(previous)
        number = max(number, _number(former) + 1)
        dates = {entry.serial_number: entry.revocation_date_utc for entry in former}
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now)
        .next_update(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial in sorted({int(text, 16) for text in serials}):
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        builder = builder.add_revoked_certificate(entry.revocation_date(dates.get(serial, now)).build())
    return builder.sign(key, None).public_bytes(Encoding.PEM)


@lru_cache(maxsize=16)
def read_revocations(data: bytes, authority: x509.Certificate) -> RevocationList:
    """Return a list that the federation's authority signed.

    Raises:
        WireError: if it is none, or another authority's.
    """
    try:
        found = x509.load_pem_x509_crl(data)
        public = authority.public_key()
        assert isinstance(public, Ed25519PublicKey)
        public.verify(found.signature, found.tbs_certlist_bytes)
        expires = found.next_update_utc
        if expires is None:
            raise ValueError("no date")
        return RevocationList(
            _number(found),
            found.last_update_utc,
            expires,
            frozenset(f"{entry.serial_number:x}" for entry in found),
        )
    except Exception:  # noqa: BLE001 - cryptography's errors have no common class
        raise WireError(
            "the list of revoked certificates that came with it is not one that this federation's authority "
            "signed; the coordinator makes one with `medfed enrol refresh`"
        ) from None


def check_newer(offered: RevocationList, known: RevocationList | None) -> None:
    """Check that a list is valid today and no older than the one that is known.

    Raises:
        WireError: if it has expired, or is older.
    """
    if offered.expires <= datetime.now(UTC):
        raise WireError(
            f"its list of revoked certificates is of {offered.issued:%Y-%m-%d} and was valid until "
            f"{offered.expires:%Y-%m-%d}; the coordinator makes a new one with `medfed enrol refresh`"
        )
    if known is not None and offered.number < known.number:
        raise WireError(
            f"its list of revoked certificates is of {offered.issued:%Y-%m-%d %H:%M:%S} UTC, and this site "
            f"has one of {known.issued:%Y-%m-%d %H:%M:%S}: an older one is not accepted"
        )


def _number(found: x509.CertificateRevocationList) -> int:
    return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
