"""The records of a hospital's part in one study: site file, study, cases, run folder, audit log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfed.deployment.site_file import SiteFile
from medfed.evaluation.inference import SiteCases
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.status import Status
from medfed.study.canonical import study_digest
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog
from medfed.wire.signing import Identity


@dataclass(frozen=True)
class SiteSession:
    """One hospital in one study."""

    site: SiteFile
    study: Study
    hospital: SiteCases
    folder: RunFolder
    status: Status
    progress: Progress
    audit: AuditLog

    @property
    def name(self) -> str:
        """The site's name."""
        return self.site.name

    @property
    def digest(self) -> str:
        """The study's digest."""
        return study_digest(self.study)

    @property
    def trains(self) -> bool:
        """Whether this site trains; a held-out one only evaluates the final model."""
        return self.name in self.study.sites

    def connect(self) -> Any:
        """Open this site's side of the exchange."""
        return self.site.exchange.open_site(self.digest, self.name, self.folder.site(self.name))


def open_audit_log(site: SiteFile, folder: RunFolder) -> AuditLog:
    """Return the run's audit log, signed with the site's key if it has one."""
    folder.path.mkdir(parents=True, exist_ok=True)
    credentials = getattr(site.exchange, "credentials", "")
    return AuditLog(folder.audit, Identity(Path(credentials)) if credentials else None)
