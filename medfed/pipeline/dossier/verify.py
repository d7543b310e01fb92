"""Compare what a dossier claims with the records that it holds, as somebody who received it does."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import msgspec

from medfed.errors import DECODING_ERRORS, AuditError
from medfed.pipeline.dossier.manifest import SIGNATURE, Manifest
from medfed.pipeline.dossier.records import Contribution, Dossier
from medfed.runs.folder import RunFolder
from medfed.runs.provenance import Merges, check_provenance
from medfed.wire.audit_log import entries


def check_claims(folder: Path, manifest: Manifest) -> bool:
    """Check dossier.json against the audit log beside it; return whether there is a log.

    Raises:
        AuditError: naming what dossier.json claims and the log does not show.
    """
    dossier = _dossier(folder)
    if (dossier.digest, dossier.weights.file.sha256) != (manifest.study, manifest.weights_sha256):
        raise AuditError("dossier: dossier.json is of another study, or other weights, than manifest.json")
    run = RunFolder(folder)
    if not run.audit.is_file():
        if dossier.provenance or dossier.log is not None:
            raise AuditError("dossier: dossier.json says who trained, and the audit log of it is missing")
        return False
    _check_study(run, dossier.digest)
    merges = check_provenance(run)
    _check_provenance(merges, dossier.provenance)
    if dossier.weights.round is not None:
        digests = {
            entry.get("round"): entry.get("sha256")
            for entry in entries(run.audit)
            if entry.get("event") == "merged" and "sites" in entry
        }
        if digests.get(dossier.weights.round) != dossier.weights.tensors_sha256:
            raise AuditError(
                f"dossier: dossier.json says that the weights are the merge of round "
                f"{dossier.weights.round}, and the audit log has another digest for it"
            )
    return True


def page_made_by(folder: Path, page: Callable[[Dossier, bool], str]) -> str:
    """Return '' if dossier.html is what `page` makes of dossier.json, else which medfed must be asked.

    Raises:
        AuditError: if it is another page, although this medfed's version made it.
    """
    dossier, path = _dossier(folder), folder / "dossier.html"
    expected = page(dossier, (folder / SIGNATURE).exists())
    if path.is_file() and path.read_bytes() == expected.encode():
        return ""
    if (made := _version(folder)) != version("medfed"):
        return made
    raise AuditError(
        "dossier: dossier.html is not the page of dossier.json: one of them was edited; believe neither, and "
        "ask for the dossier again"
    )


def _version(folder: Path) -> str:
    """Return which medfed made a dossier, by its bill of materials."""
    try:
        bill = msgspec.json.decode((folder / "sbom.cdx.json").read_bytes())
        return str(bill["metadata"]["component"]["version"])[:40]
    except (OSError, *DECODING_ERRORS, KeyError, TypeError):
        raise AuditError("dossier: sbom.cdx.json is missing or damaged; ask for the dossier again") from None


def _check_study(run: RunFolder, claimed: str) -> None:
    began = {entry.get("study") for entry in entries(run.audit) if entry.get("event") == "began"}
    if began and claimed not in began:
        raise AuditError(
            "dossier: dossier.json is of another study than the one that the audit log began; the log is the "
            "record"
        )


def _dossier(folder: Path) -> Dossier:
    try:
        return msgspec.json.decode((folder / "dossier.json").read_bytes(), type=Dossier)
    except (OSError, *DECODING_ERRORS) as error:
        raise AuditError(f"dossier: dossier.json is missing or damaged ({type(error).__name__})") from None


def _check_provenance(merges: Merges, claimed: list[Contribution]) -> None:
    told = {one.site: tuple(one.rounds) for one in claimed}
    for site in sorted({*merges, *told}):
        if merges.get(site) != told.get(site):
            raise AuditError(
                f"dossier: dossier.json and the audit log differ in the rounds in which '{site[:64]}' was "
                "merged; the log is the record"
            )
