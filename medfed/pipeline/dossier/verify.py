"""Compare what a dossier claims with the records that it holds, as somebody who received it does."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import msgspec

from medfed.errors import DECODING_ERRORS, AuditError, RunError
from medfed.evaluation.report.page import render
from medfed.evaluation.report.run import read_run
from medfed.pipeline.dossier.checklist import checklists
from medfed.pipeline.dossier.collect import derived
from medfed.pipeline.dossier.manifest import SIGNATURE, Manifest
from medfed.pipeline.dossier.records import Contribution, Dossier, LogFacts
from medfed.runs.folder import RunFolder
from medfed.runs.provenance import Merges, check_provenance
from medfed.wire.audit_log import entries, verify

# The records in a dossier from which its claims follow, beside the log.
RECORDS = ("run.json", "study.json", "rows.jsonl", "rounds.jsonl", "audit.jsonl")


def check_claims(folder: Path, manifest: Manifest) -> bool:
    """Check dossier.json against the audit log beside it; return whether that shows who trained.

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
    return bool(merges)


def check_derived(folder: Path) -> str:
    """Derive again what dossier.json and report.html say of the run, from the records in the dossier.

    Returns '' if they say what follows, else which medfed must be asked.

    Raises:
        AuditError: naming the first claim that does not follow, although this medfed's version made it.
    """
    if (made := _version(folder)) != version("medfed"):
        return made
    dossier, place = _dossier(folder), RunFolder(folder)
    if not place.facts.is_file():
        raise AuditError(
            "dossier: it holds no run.json, from which its claims follow: it was taken out, or an earlier "
            "medfed made this; ask for the dossier again"
        )
    try:
        run = read_run(folder)
        expected = derived(run)
        report = render(run)
    except RunError as error:
        raise AuditError(f"dossier: {error}") from None
    expected["log"] = _log_of(place, dossier)
    expected["never_merged"] = run.never_merged if dossier.provenance else []
    expected["checklists"] = checklists(dossier)
    for name, value in expected.items():
        if getattr(dossier, name) != value:
            raise AuditError(
                f"dossier: what dossier.json says of '{name}' does not follow from the records in it "
                f"({', '.join(RECORDS)}); believe neither, and ask for the dossier again"
            )
    if not place.report.is_file() or place.report.read_bytes() != report.encode():
        raise AuditError(
            "dossier: report.html is not the page of the records in the dossier: one of them was edited; "
            "believe neither, and ask for the dossier again"
        )
    return ""


def _log_of(place: RunFolder, dossier: Dossier) -> LogFacts | None:
    """Return what the dossier's log holds; whether its issuer was checked is its maker's word."""
    if not place.audit.is_file():
        return None
    checked = verify(place.audit)
    facts = LogFacts(checked.lines, checked.head, checked.signer, checked.signed, checked.fingerprint)
    return msgspec.structs.replace(facts, issued=dossier.log is not None and dossier.log.issued)


class Standing(NamedTuple):
    """What each claim of a dossier rests on, once its files are whole and nothing contradicts."""

    verified: bool
    recomputed: list[str]
    follow: list[str]
    stated: list[str]


def standing(signed: bool, issuer_checked: bool, has_merges: bool, derived_again: bool) -> Standing:
    """Return what a dossier's claims rest on; of one that nobody known signed, none is verified."""
    recomputed = ["who trained, in which rounds", "which merge the weights are"] if has_merges else []
    follow = ["the finding", "privacy spent", "data", "limits", "the checklists' texts"]
    stated = ["leakage audits", "approvals by site files", "a person's statements", "software"]
    return Standing(
        signed and issuer_checked,
        recomputed,
        follow if derived_again else [],
        stated if derived_again else [*follow, *stated],
    )


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
