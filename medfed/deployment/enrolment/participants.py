"""The certificates that a federation's authority issued to its sites, from the coordinator's folder."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from medfed.wire import revocations
from medfed.wire.signing import HUB, SITE, common_name, role, serial_number

# A certificate that expires within this many days is reported as expiring soon.
EXPIRY_WARNING_DAYS = 60


@dataclass(frozen=True)
class Participant:
    """A site's certificate; `user` is the name by which the broker knows its holder.

    One that states no role is from an older medfed, and refused everywhere.
    """

    site: str
    serial: str
    user: str
    expires: datetime
    revoked: bool
    role: str = SITE

    @property
    def days_left(self) -> int:
        """Whole days until it expires; negative when it has."""
        return (self.expires - datetime.now(UTC)).days

    @property
    def status(self) -> str:
        """One of: valid, expires soon, expired, revoked, no role."""
        if self.revoked:
            return "revoked"
        if not self.role:
            return "no role"
        if self.days_left < 0:
            return "expired"
        return "expires soon" if self.days_left < EXPIRY_WARNING_DAYS else "valid"


def participants(folder: Path) -> list[Participant]:
    """Return every certificate that was issued to a site, ordered by site and then by expiry."""
    path = folder / HUB / "revoked.txt"
    revoked = set(path.read_text().split()) if path.exists() else set()
    issued = []
    for file in (folder / "sites").glob("*.pem"):
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        issued.append(participant(certificate, serial_number(certificate) in revoked))
    return sorted(issued, key=lambda holder: (holder.site, holder.expires, holder.serial))


def revocations_expire(folder: Path) -> datetime:
    """Return when the list of revoked certificates expires that goes to the hospitals."""
    authority = x509.load_pem_x509_certificate((folder / "authority.pem").read_bytes())
    return revocations.read_revocations((folder / HUB / revocations.FILE).read_bytes(), authority).expires


def participant(certificate: x509.Certificate, revoked: bool) -> Participant:
    """Return the record of a certificate."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    user = names.get_values_for_type(x509.DNSName)[0]
    return Participant(
        common_name(certificate),
        serial_number(certificate),
        user,
        certificate.not_valid_after_utc,
        revoked,
        role(certificate),
    )
