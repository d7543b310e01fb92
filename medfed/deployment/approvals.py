"""Which studies a hospital agreed to, by digest: asked once a study, written down, and asked
again when it changes.

The record is a chained log like the audit log (`wire/audit_log.py`), in the site's own folder and readable by
its owner only. A study is named by the digest that `study.digest` gives, so a study in which one number
changed is another study.
"""

from __future__ import annotations

from pathlib import Path

from medfed.wire.audit_log import AuditLog, entries

# The record's file in the site's folder.
FILE = "consent.jsonl"


def is_approved(folder: Path, digest: str) -> bool:
    """Return whether the site agreed to the study of this digest, and did not take that back since.

    Raises:
        AuditError: if the record was changed by anything but medfed.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return False
    AuditLog(path)  # checks every link; what a power cut left of a last line says nothing
    said = False
    for entry in entries(path):
        if entry.get("study") == digest:
            said = entry["event"] == "agreed"
    return said


def last_approved(folder: Path) -> str | None:
    """Return the digest of the study that was agreed to last, if any was."""
    path = Path(folder) / FILE
    said = [entry for entry in entries(path) if entry["event"] == "agreed"] if path.exists() else []
    return said[-1]["study"] if said else None


def approve(folder: Path, digest: str, by: str) -> None:
    """Write down that `by` (a person's name or login, never a patient's) agreed to the study of this digest."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    AuditLog(path).write("agreed", study=digest, by=by)
