"""The records of a hospital's part in one study: site file, study, cases, run folder, audit log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfed.deployment.approvals import head_of, is_approved
from medfed.deployment.site_file import SiteFile, give_up_s
from medfed.errors import DeclinedError
from medfed.evaluation.inference import SiteCases
from medfed.files import private_folder
from medfed.privacy.accounting.ledger import LEDGER, Ledger
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.status import Status
from medfed.study.canonical import study_digest
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog
from medfed.wire.signing import Identity

# Beside a site's own state: that the hub has all that this site sends.
ANSWERED = "answered"


@dataclass(frozen=True)
class SiteSession:
    """One hospital in one study.

    agreed: the digest of the study as the hub offered it, where `study` has been planned since.
    """

    site: SiteFile
    study: Study
    hospital: SiteCases
    folder: RunFolder
    status: Status
    progress: Progress
    audit: AuditLog
    agreed: str = ""

    @property
    def name(self) -> str:
        """The site's name."""
        return self.site.name

    @property
    def digest(self) -> str:
        """The digest of the study to which this hospital agreed."""
        return self.agreed or study_digest(self.study)

    @property
    def trains(self) -> bool:
        """Whether this site trains; a held-out one only evaluates the final model."""
        return self.study.trains(self.name)

    @property
    def has_answered(self) -> bool:
        """Whether the hub has all that this hospital sends, and may have ended."""
        return (self.folder.path / "sites" / self.name / ANSWERED).exists()

    def connect(self) -> Any:
        """Open this site's side of the exchange."""
        side: Any = self.site.exchange.open_site(self.digest, self.name, self.folder.site(self.name))
        side.max_silence_s = give_up_s(self.site)
        return side


def check_still_approved(session: SiteSession, digest: str) -> None:
    """Raise if someone revoked the approval of the study while this site takes part.

    Raises:
        DeclinedError: naming the site.
    """
    if not is_approved(Path(session.site.out), digest, head_of(Path(session.site.secret))):
        session.audit.write("approval revoked", site=session.name, study=digest)
        raise DeclinedError(f"site '{session.name}': this hospital revoked its approval of the study")


def ledger_of(site: SiteFile, secret: bytes) -> Ledger:
    """Return the ledger of this hospital's patients over all studies, beside the run folders.

    Its head is beside the site's secret, under which it is signed.

    Raises:
        PrivacyError: if the ledger was edited or cut, or is missing although the head is there.
    """
    policy, (path, head) = site.policy, _ledger_places(site)
    return Ledger(path, policy.epsilon_ceiling, policy.delta, secret=secret, head=head)


def adopt_ledger(site: SiteFile, secret: bytes) -> int:
    """Take over a ledger whose head or signatures are missing, and return how many lines it had."""
    path, head = _ledger_places(site)
    return Ledger.adopt(path, secret=secret, head=head)


def _ledger_places(site: SiteFile) -> tuple[Path, Path]:
    """Return where this hospital's ledger is, and where its head."""
    kept = Path(site.secret)
    return Path(site.out) / LEDGER, kept.with_name(f"{kept.name}.ledger")


def open_audit_log(site: SiteFile, folder: RunFolder) -> AuditLog:
    """Return the run's audit log, signed with the site's key if it has one."""
    private_folder(folder.path)
    credentials = getattr(site.exchange, "credentials", "")
    return AuditLog(folder.audit, Identity(Path(credentials)) if credentials else None)
