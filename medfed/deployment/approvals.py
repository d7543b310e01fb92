"""The record of the studies that a hospital approved, by digest; a changed study must be approved again.

The record is a chained log like the audit log (`wire/audit_log.py`), in the site's own folder and readable
only by its owner. A study is identified by `study_digest`, so changing one number makes another study.
"""

from __future__ import annotations

from pathlib import Path

from medfed.wire.audit_log import AuditLog, entries

# The record's file in the site's folder.
FILE = "consent.jsonl"


def is_approved(folder: Path, digest: str) -> bool:
    """Return whether the site approved the study of this digest.

    Raises:
        AuditError: if the record was changed by anything but medfed.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return False
    AuditLog(path)  # checks the chain; a last line that a power cut tore counts for nothing
    events = [entry["event"] for entry in entries(path) if entry.get("study") == digest]
    # Earlier versions could also revoke an approval.
    return bool(events) and events[-1] == "agreed"


def last_approved(folder: Path) -> str | None:
    """Return the digest of the study that was approved last, or None."""
    path = Path(folder) / FILE
    approvals = [entry for entry in entries(path) if entry["event"] == "agreed"] if path.exists() else []
    return approvals[-1]["study"] if approvals else None


def approve(folder: Path, digest: str, by: str) -> None:
    """Record that `by` (a person's name or login, never a patient's) approved the study of this digest."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    AuditLog(path).write("agreed", study=digest, by=by)
