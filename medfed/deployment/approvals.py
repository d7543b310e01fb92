"""The record of the studies that a hospital approved, by digest; a changed study must be approved again.

The record is a chained log like the audit log (`wire/audit_log.py`), in the site's own folder and readable
only by its owner. A study is identified by `study_digest`, so changing one number makes another study. What
was approved is kept beside it, in `approved/`, so that the page for a changed study says what changed. The
last line on a study counts: approved, or revoked.

A chain without its last lines is a chain, too, and the last line may be a revocation. So the last line's
digest is kept elsewhere as well (`head`, a hospital's beside its secret).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfed.errors import AuditError, MedfedError, StudyError
from medfed.files import write_whole
from medfed.study.canonical import digest_of, public_yaml, study_digest
from medfed.study.reading import plain_study
from medfed.study.study import Study
from medfed.wire.audit_log import GENESIS, AuditLog, entries

# The record's file and the folder of what was approved, in the site's folder.
FILE, STUDIES = "consent.jsonl", "approved"

# The fewest digits of a digest by which a person may name a study.
DIGITS = 12

# Keys in which studies differ without being computed differently, or that the page itself compares.
_NOT_COMPARED = ("exchange",)


@dataclass(frozen=True)
class Approval:
    """The last thing that this hospital said about a study."""

    digest: str
    time: str
    by: str
    revoked: bool


def head_of(secret: Path) -> Path:
    """Return where the digest of the record's last line is, for a site whose secret is in this file."""
    return secret.with_name(f"{secret.name}.approvals")


def approvals(folder: Path, head: Path | None = None) -> list[Approval]:
    """Return for each study that was ever approved here what was said last, the newest at the end.

    Raises:
        AuditError: if the record was changed by anything but medfed, or its last lines are missing.
    """
    path = Path(folder) / FILE
    _check_head(path, head)
    if not path.exists():
        return []
    AuditLog(path)  # checks the chain; a last line that a power cut tore counts for nothing
    last: dict[str, Approval] = {}
    for entry in entries(path):
        if "study" not in entry:  # the repair of a line that a power cut tore
            continue
        digest, revoked = entry["study"], entry["event"] != "agreed"
        last.pop(digest, None)
        last[digest] = Approval(digest, entry["time"], str(entry.get("by", "")), revoked)
    return list(last.values())


def _check_head(path: Path, head: Path | None) -> None:
    """Check that the line whose digest is kept elsewhere is in the record.

    Raises:
        AuditError: if it is not, or if nothing is kept elsewhere: then another hospital may have written it.
    """
    if head is None:
        return
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    if not head.exists():
        if lines:
            raise AuditError(
                f"approvals: {FILE} has {len(lines)} lines, and what this hospital keeps of its own record "
                f"beside its secret ({head.name}) is not there: the record may be a copy of another "
                "hospital's, or an earlier medfed's. Nothing in it counts here; move it away, read the page "
                "of each study and approve it again with `medfed train --site ... --accept DIGEST`"
            )
        return
    known = head.read_text().strip()
    if known != GENESIS and known not in {hashlib.sha256(line).hexdigest() for line in lines}:
        raise AuditError(
            f"approvals: the last line that this hospital wrote ({known[:12]}) is not among the {len(lines)} "
            f"of {FILE}; lines were cut or replaced, perhaps one by which an approval was revoked. Restore "
            f"the file from a backup; if it is right as it is, delete {head.name} beside the secret"
        )


def _write(folder: Path, head: Path | None, event: str, **fields: str) -> None:
    path = Path(folder) / FILE
    if head is not None and not head.exists():  # a power cut may come between the first line and its digest
        write_whole(head, GENESIS, durable=True, mode=0o600)
    AuditLog(path).write(event, **fields)
    if head is not None:
        last = path.read_bytes().split(b"\n")[-2]
        write_whole(head, hashlib.sha256(last).hexdigest(), durable=True, mode=0o600)


def is_approved(folder: Path, digest: str, head: Path | None = None) -> bool:
    """Return whether the site approved the study of this digest, and has not revoked that since.

    Raises:
        AuditError: if the record was changed by anything but medfed.
    """
    return any(one.digest == digest and not one.revoked for one in approvals(folder, head))


def last_approved(folder: Path, head: Path | None = None) -> str | None:
    """Return the digest of the study that was approved last, or None."""
    valid = [one.digest for one in approvals(folder, head) if not one.revoked]
    return valid[-1] if valid else None


def approve(folder: Path, study: Study, by: str, head: Path | None = None) -> None:
    """Record that `by` (a person's name or login, never a patient's) approved this study."""
    digest = study_digest(study)
    _check_head(Path(folder) / FILE, head)
    write_whole(Path(folder) / STUDIES / f"{digest}.yaml", public_yaml(study), mode=0o600)
    _write(folder, head, "agreed", study=digest, by=by)


def revoke(folder: Path, digits: str, by: str, head: Path | None = None) -> Approval:
    """Record that `by` revoked the approval of the study whose digest begins with `digits`; return it.

    A site that trains in it stops before it next sends.

    Raises:
        StudyError: if no approved study, or more than one, has such a digest.
    """
    valid = [one for one in approvals(folder, head) if not one.revoked]
    chosen = [one for one in valid if len(digits) >= DIGITS and one.digest.startswith(digits.lower())]
    if len(chosen) != 1:
        known = ", ".join(one.digest[:DIGITS] for one in valid) or "none"
        raise StudyError(
            f"approvals: no approved study's digest begins with '{digits[:64]}'; give at least {DIGITS} "
            f"digits of one of those that are approved: {known}"
        )
    _write(folder, head, "revoked", study=chosen[0].digest, by=by)
    return chosen[0]


def describe_changes(folder: Path, study: Study, head: Path | None = None) -> str:
    """Return what changed since this site last approved a study of the same name; '' if it never did."""
    for one in reversed(approvals(folder, head)):
        before = _approved_study(folder, one.digest)
        if before is None or before.get("name") != study.name:
            continue
        changes = list(_changes(before, plain_study(public_yaml(study), "the study")))
        said = f"{'revoked' if one.revoked else 'approved'} here on {one.time[:10]}"
        title = f"Changed since the study of this name that was {said} ({one.digest[:DIGITS]})"
        return "\n".join([title, *(f"  {line}" for line in changes or ["nothing"])]) + "\n"
    return ""


def _approved_study(folder: Path, digest: str) -> dict[str, Any] | None:
    """Return a study that was approved here, or None if its file is missing or is another study's.

    As plain values, since its kinds may be those of a plug-in that is no longer here.
    """
    try:
        text = (Path(folder) / STUDIES / f"{digest}.yaml").read_text(encoding="utf-8")
        plain = plain_study(text, "the approved study")
    except (OSError, MedfedError):
        return None
    return plain if digest_of(plain) == digest else None


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line per setting that differs; values are quoted, with everything but ASCII escaped."""
    old, new = dict(_settings(before)), dict(_settings(after))
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            yield f"{key}: {_quoted(old, key)} -> {_quoted(new, key)}"


def _settings(plain: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a study by their key path; the sites without their folders."""
    for key, value in plain.items():
        path = f"{where}.{key}" if where else json.dumps(str(key))[1:-1]
        if path in _NOT_COMPARED:
            continue
        if path in ("sites", "held_out"):
            yield path, sorted(value)
        elif isinstance(value, Mapping) and value:
            yield from _settings(value, path)
        else:
            yield path, value


def _quoted(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "not there"
