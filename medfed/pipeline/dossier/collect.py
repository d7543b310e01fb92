"""Collect a dossier's content from a run's own records: what happened, not what was planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509

from medfed.errors import DECODING_ERRORS, AuditError, RunError
from medfed.evaluation.report import checklists as reporting
from medfed.evaluation.report.facts import case_table
from medfed.evaluation.report.focus import focus_of
from medfed.evaluation.report.headline import sentence
from medfed.evaluation.report.limits import limits, suppressed_values
from medfed.evaluation.report.run import Run, read_run
from medfed.evaluation.rows import FEDERATED
from medfed.pipeline.dossier.checklist import checklists
from medfed.pipeline.dossier.manifest import digest_file
from medfed.pipeline.dossier.records import (
    MAX_TELLING,
    Agreement,
    Contribution,
    DataFacts,
    Dossier,
    LeakageFigure,
    LogFacts,
    PrivacyStatement,
    SpentEpsilon,
    SplitCounts,
    Statements,
    WeightFacts,
)
from medfed.pipeline.leakage.findings import Inversion, Membership
from medfed.runs.checkpoints import load_checkpoint
from medfed.runs.facts import package_versions
from medfed.runs.folder import RunFolder
from medfed.runs.provenance import check_heads, check_provenance, check_sent
from medfed.wire.audit_log import entries, verify
from medfed.wire.weights import digest

WEAK = f"an epsilon above {MAX_TELLING:g} is no protection in practice; it is shown, and is no evidence"

# A leakage audit's file is at most this large.
MAX_LEAKAGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Sources:
    """What a dossier is made of beside the run folder.

    statements: what a person said.  agreements: what hospitals agreed to, by their own records.  site_logs:
    hospitals' own audit logs.  authority: whose certificates the logs must bear.  exported: an export's
    folder.
    """

    statements: Statements = field(default_factory=Statements)
    agreements: Sequence[Agreement] = ()
    site_logs: Sequence[Path] = ()
    authority: x509.Certificate | None = None
    exported: Path | None = None


def collect(
    folder: RunFolder, sources: Sources, made: str, packages: int, evidence: RunFolder | None = None
) -> Dossier:
    """Return the dossier of a run's federated model; `packages` is how many the bill of materials lists.

    What follows from the run's own records is derived from those in `evidence`, the dossier's folder, so that
    whoever receives it can derive it again (`derived`); by default from the run's folder.

    Raises:
        RunError: if nothing was measured in the run, or it has no federated model.
        AuditError: if its log is not intact, or contradicts the run or a hospital's own log.
    """
    run, log = read_run((evidence or folder).path), _log(folder, sources.authority)
    provenance, note = _provenance(folder, run, sources)
    leakage, leakage_note = _leakage(folder, run)
    agreements = _agreements(folder, run, sources, log)
    dossier = Dossier(
        **derived(run),
        made=made,
        weights=_weights(folder, sources.exported),
        provenance=provenance,
        never_merged=run.never_merged if provenance else [],
        provenance_note=note,
        log=log,
        leakage=leakage,
        leakage_note=leakage_note,
        agreements=agreements,
        agreements_note=_agreements_note(agreements, run),
        statements=sources.statements,
        packages=packages,
        differing=_differing(run.facts.versions),
    )
    return msgspec.structs.replace(dossier, checklists=checklists(dossier))


def derived(run: Run) -> dict[str, Any]:
    """Return what of a dossier follows from the records in it, by field."""
    focus = focus_of(run)
    finding = sentence(run, focus).text
    unfinished = [] if run.facts.is_finished else ["The run has not come to its end."]
    return {
        "study": run.facts.study,
        "digest": run.facts.digest,
        "task": run.facts.task,
        "finding": finding,
        "privacy": _privacy(run),
        "data": _data(run),
        "card": reporting.model_card(run, finding),
        "limits": [*unfinished, *limits(run, focus)],
        "start": run.facts.start.sentence if run.facts.start else "",
        "withheld_values": suppressed_values(run),
        "smallest_group": run.study.min_patients,
    }


def _log(folder: RunFolder, authority: x509.Certificate | None) -> LogFacts | None:
    """Return what a run's audit log holds, verified; None if there is none, or it is empty."""
    if not folder.audit.is_file() or not folder.audit.stat().st_size:
        return None
    checked = verify(folder.audit, None, authority)
    return LogFacts(
        checked.lines,
        checked.head,
        checked.signer,
        checked.signed,
        checked.fingerprint,
        issued=authority is not None,
    )


def _provenance(folder: RunFolder, run: Run, sources: Sources) -> tuple[list[Contribution], str]:
    """Return who trained, recomputed from the log as `medfed audit verify` does, and what that rests on."""
    merges = check_provenance(folder) if folder.audit.is_file() else {}
    if not merges:
        if sources.site_logs:
            raise AuditError(
                f"{folder.path}: its log holds no merge to compare hospitals' logs with; give the hub's run "
                "folder"
            )
        return [], (
            "The audit log of this folder holds no merge: who trained the model cannot be shown from it. The "
            "hub's run folder can"
        )
    cases = {line.site: line.examples for line in run.rounds if line.status == "merged"}
    own: dict[str, str] = {}
    for log in sources.site_logs:
        verify(log, None, sources.authority)
        site = check_sent(merges, log, folder.audit)
        heads = check_heads(site, log, folder.audit)
        rounds = sorted({*heads.of_site, *heads.of_hub})
        kept = f"; both kept digests of each other's logs up to round {rounds[-1]}" if rounds else ""
        changed = any(entry.get("event") == "data changed" for entry in entries(log))
        own[site] = f"its own log agrees{kept}" + ("; data changed between starts" if changed else "")
    found = [
        Contribution(site, list(rounds), cases.get(site), own.get(site, ""))
        for site, rounds in merges.items()
    ]
    return found, "Recomputed from the merges in audit.jsonl, which rounds.jsonl agrees with"


def _weights(folder: RunFolder, exported: Path | None) -> WeightFacts:
    """Return what ties the weights to the audit log."""
    path = folder.checkpoint(FEDERATED)
    if not path.is_file():
        raise RunError(
            f"{folder.path}: has no federated model; a dossier is of the model trained over hospitals"
        )
    tensors = digest(load_checkpoint(path))
    rounds = [
        int(entry["round"])
        for entry in (entries(folder.audit) if folder.audit.is_file() else ())
        if entry.get("event") == "merged" and entry.get("sha256") == tensors
    ]
    files = [one for one in sorted(exported.rglob("*")) if one.is_file()] if exported is not None else []
    if exported is not None and not files:
        raise RunError(f"{exported}: holds no file; give the folder that `medfed export` wrote")
    return WeightFacts(
        model=FEDERATED,
        file=digest_file(path),
        tensors_sha256=tensors,
        round=rounds[-1] if rounds else None,
        exported=[digest_file(one, one.relative_to(exported).as_posix()) for one in files if exported],
    )


def _privacy(run: Run) -> PrivacyStatement:
    """Return the mechanism and the epsilon that was spent, or why there is none."""
    facts = run.facts.privacy
    kind = run.study.kind("privacy") or facts.kind
    if facts.sites:
        spent = [SpentEpsilon(site, one.epsilon) for site, one in sorted(facts.sites.items())]
        weak = any(one.epsilon > MAX_TELLING for one in spent)
        return PrivacyStatement(
            kind=kind,
            notes=[*facts.notes, *([WEAK] if weak else [])],
            delta=facts.delta or None,
            unit=facts.unit or "",
            accountant=facts.accountant or "",
            spent=spent,
            unknown=sorted(set(run.trained) - set(facts.sites)),
        )
    why = f"'{kind}' is no differential privacy: nothing bounds what the weights tell of one patient"
    if "delta" in run.study.section("privacy"):
        why = (
            "The study asks for differential privacy. What was spent is in the hospitals' own ledgers "
            "(`medfed audit ledger`), and not in this run folder"
        )
    return PrivacyStatement(kind=kind, notes=facts.notes, no_epsilon=why)


class _Leakage(msgspec.Struct):
    inverted: list[Inversion]
    members: list[Membership]
    digest: str = ""


def _leakage(folder: RunFolder, run: Run) -> tuple[list[LeakageFigure], str]:
    """Return the figures of the leakage audits in a run's folders, in whole percent, and a note."""
    figures: list[LeakageFigure] = []
    other = []
    for site in run.facts.sites:
        path = folder.path / "sites" / site / "leakage" / "leakage.json"
        if not path.is_file():
            continue
        try:
            if path.stat().st_size > MAX_LEAKAGE_BYTES:
                raise msgspec.DecodeError(f"more than {MAX_LEAKAGE_BYTES} bytes")
            found = msgspec.json.decode(path.read_bytes(), type=_Leakage)
        except DECODING_ERRORS as error:
            raise RunError(
                f"leakage audit of '{site}': its leakage.json is damaged ({error}); run `medfed audit "
                "leakage` again"
            ) from None
        if found.digest != run.facts.digest:
            other.append(site)
        else:
            figures += _figures(site, found)
    if other:
        note = f"The audits at {', '.join(other)} are of another study than this one, and are not shown"
    else:
        note = "" if figures else "No leakage audit is in this run folder (`medfed audit leakage`)"
    return figures, note


def _figures(site: str, found: _Leakage) -> list[LeakageFigure]:
    # Whole percent: with one case in the step, more digits would be a value of a single patient.
    inverted = [
        LeakageFigure(
            site=site,
            protection=one.privacy,
            cases=one.cases,
            recovered=round(100 * one.best),
            chance=round(100 * one.chance),
        )
        for one in found.inverted
    ]
    members = [
        LeakageFigure(
            site=site,
            protection=one.privacy,
            cases=one.cases,
            members=round(100 * max(one.by_loss, one.by_ratio or 0.5)),
        )
        for one in found.members
        if one.is_reliable
    ]
    return inverted + members


def _agreements(folder: RunFolder, run: Run, sources: Sources, log: LogFacts | None) -> list[Agreement]:
    """Return what hospitals agreed to: by their records of approvals, and by their own logs."""
    other = [one.site for one in sources.agreements if one.study != run.facts.digest]
    if other:
        raise RunError(
            f"{folder.path}: hospital '{other[0]}' has no approval of this run's study "
            f"({run.facts.digest[:12]}) in its record; give the site file of a hospital that trained in it"
        )
    found = {
        one.site: one
        for path in (*sources.site_logs, *([folder.audit] if log is not None else []))
        for one in _logged_agreements(path, run.facts.digest)
    }
    found |= {one.site: one for one in sources.agreements}
    return [found[site] for site in sorted(found)]


def _logged_agreements(log: Path, study: str) -> Iterator[Agreement]:
    """Yield the agreements to a study in a hospital's own audit log, and whether they were revoked since."""
    site, approved, revoked = "", "", False
    for entry in entries(log):
        if entry.get("event") == "began" and len(entry.get("sites", ())) == 1:
            (site,) = entry["sites"]
        if entry.get("study") == study and entry.get("event") in ("agreed", "approval revoked"):
            approved = str(entry["time"]) if entry["event"] == "agreed" else approved
            revoked = entry["event"] != "agreed"
    if site and approved:
        yield Agreement(site=site, study=study, approved=approved, revoked=revoked)


def _agreements_note(agreements: Sequence[Agreement], run: Run) -> str:
    # Where the records do not say who trained, those who were planned to must have approved.
    asked = run.trained or run.facts.sites
    missing = sorted(set(asked) - {one.site for one in agreements if not one.revoked})
    if not missing:
        return ""
    return (
        f"No approval of {', '.join(missing)} is in this dossier. In a simulation nobody is asked; otherwise "
        "each hospital's own record has it (`medfed export --dossier --site`)"
    )


def _data(run: Run) -> DataFacts:
    table, card = case_table(run), reporting.model_card(run, "")
    preparation = run.study.section("data").get("spacing_mm")
    return DataFacts(
        kind=run.study.kind("data") or str(run.study.section("data").get("kind", "")),
        inputs=card.get("Input") or "",
        classes=list(run.facts.classes),
        splits=list(table["splits"]) if table else [],
        cases=[SplitCounts(site, counts) for site, counts in table["lines"]] if table else [],
        left_out=card.get("Cases left out") or "",
        preparation=f"spacing {preparation}" if preparation else "",
    )


def _differing(recorded: Mapping[str, str]) -> list[str] | None:
    """Return the packages whose version here is another than the run recorded, None if it recorded none."""
    if not recorded:
        return None
    here = package_versions()
    return [
        f"{name}: {version} in training, {here.get(name, 'not installed')} here"
        for name, version in sorted(recorded.items())
        if here.get(name) != version
    ]
