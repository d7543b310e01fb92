"""What a hospital's own records say of its agreement to a study, by digest, for an export dossier."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from medfed.deployment.approvals import FILE, approvals, head_of
from medfed.deployment.policy import Policy
from medfed.deployment.site_file import SiteFile
from medfed.errors import StudyError
from medfed.pipeline.dossier.records import Agreement
from medfed.wire.audit_log import line_digests


def policy_digest(policy: Policy) -> str:
    """Return the SHA-256 of a policy as JSON with sorted keys, every default written out."""
    return hashlib.sha256(msgspec.json.encode(msgspec.to_builtins(policy), order="sorted")).hexdigest()


def agreement_of(site: SiteFile, study: str) -> Agreement:
    """Return what a hospital last said about the study of this digest, and its policy of today by digest.

    Raises:
        StudyError: if it never approved that study.
        AuditError: if its record of approvals was changed.
    """
    out = Path(site.out)
    said = [one for one in approvals(out, head_of(Path(site.secret))) if one.digest == study]
    if not said:
        raise StudyError(
            f"site '{site.name}': its record has no approval of study {study[:12]}; give the site file of a "
            "hospital that agreed to the run's study"
        )
    return Agreement(
        site=site.name,
        study=study,
        approved=said[0].time,
        revoked=said[0].revoked,
        policy=policy_digest(site.policy),
        record=line_digests(out / FILE)[-1],
    )
