"""The dossier's checklists: what a specification or a law asks, and what this dossier has as evidence.

An item is "supports", with the evidence, or "not covered by medfed"; whether it is fulfilled is for the
reader. The items are in `evaluation/report/dossier_checklists.yaml`, in our words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import msgspec

from medfed.evaluation.report.templates import FOLDER
from medfed.pipeline.dossier.records import (
    MAX_TELLING,
    Answer,
    Dossier,
    Framework,
    LeakageFigure,
    PrivacyStatement,
)

FILE = "dossier_checklists.yaml"


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item of a checklist; its evidence is a template over `evidence`, None where medfed has none."""

    item: str
    asks: str
    evidence: str | None


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A checklist before it is filled in."""

    name: str
    source: str
    items: list[Item]


@cache
def templates() -> list[Template]:
    """Return the checklists, before they are filled in."""
    return msgspec.yaml.decode((FOLDER / FILE).read_bytes(), type=list[Template])


def checklists(dossier: Dossier) -> list[Framework]:
    """Return the checklists, filled from what this dossier holds."""
    known = evidence(dossier)
    return [
        Framework(
            name=one.name,
            source=one.source,
            items=[
                Answer(item=item.item, asks=item.asks, evidence=_filled(item.evidence, known))
                for item in one.items
            ],
        )
        for one in templates()
    ]


def _filled(template: str | None, known: dict[str, str]) -> str:
    """Return the evidence, '' where the dossier lacks something that it needs."""
    if not template or not all(known[name] for name in re.findall(r"{(\w+)}", template)):
        return ""
    return template.format_map(known)


def evidence(dossier: Dossier) -> dict[str, str]:
    """Return what the dossier has to show, by the names in the templates; '' for what it lacks."""
    said = dossier.statements
    return {
        **_records(dossier),
        **_protection(dossier),
        "approvals": _stated(said.approvals),
        "purpose": _stated(said.purpose),
        "not_for": _stated(said.not_for),
        "intended_use": _stated(said.intended_use),
        "oversight": _stated(said.oversight),
        "risks": _stated(said.risks),
        "recipient_check": _stated(said.recipient),
        "monitoring": _monitoring(said.monitoring),
    }


def _stated(text: str) -> str:
    return f"stated by the exporter: {text}" if text else ""


def _monitoring(plan: str) -> str:
    command = "`medfed watch-model` compares a hospital's new cases with its reference, after deployment"
    return f"{_stated(plan)}; {command}" if plan else ""


def _records(dossier: Dossier) -> dict[str, str]:
    """Return what the run's own records show."""
    card, log, data = dossier.card, dossier.log, dossier.data
    cases = f"cases by hospital and split, {data.inputs[:1].lower()}{data.inputs[1:]}" if data.cases else ""
    origin = f"; {_stated(dossier.statements.data_origin)}" if dossier.statements.data_origin else ""
    finding = f"{dossier.finding} (rows.jsonl, report.html)" if dossier.finding else ""
    changes = any("data changed" in (one.own_log or "") for one in dossier.provenance)
    return {
        "data": f"section Data: {cases}{origin}" if cases else "",
        "data_changed": "the hospitals' logs name changes of their data" if changes else "",
        "log": _log(dossier) if log is not None else "",
        "outputs": f"the weights ({dossier.weights.file.sha256[:12]}) and what manifest.json lists, no more",
        "study": f"study.json, digest {dossier.digest[:12]}, by which hospitals approve it",
        "results": finding,
        "sbom": f"sbom.cdx.json: {dossier.packages} packages with versions and licences",
        "forms": "; ".join(one.name for one in dossier.weights.exported),
        "training": card.get("Training") or "",
        "start": dossier.start or "It began from random weights",
        "design": "; ".join(text for key in ("Model", "Output") if (text := card.get(key))),
        "architecture": card.get("Model") or "",
        "inputs": card.get("Input") or "",
        "tested": f"{finding}; manifest.json is dated, and signed where a signature is there"
        if finding
        else "",
        "accuracy": f"{finding}; section Limits" if finding else "",
        "versions": f"study digest {dossier.digest[:12]}, weights {dossier.weights.file.sha256[:12]}",
        "minimum": f"section Data: what the model sees of a patient ({data.inputs})" if data.inputs else "",
    }


def _log(dossier: Dossier) -> str:
    assert dossier.log is not None
    log = dossier.log
    by = f"signed by {log.signer}" if log.signed else "not signed"
    return f"audit.jsonl: {log.lines} chained lines of what crossed a wall, {by}; `medfed audit verify`"


def _bound(privacy: PrivacyStatement) -> str:
    """Return the largest epsilon; '' where a hospital's is unknown, or one is too large to bound anything."""
    spent = max((one.epsilon for one in privacy.spent), default=None)
    if spent is None or privacy.unknown or spent > MAX_TELLING:
        return ""
    each = f"{privacy.unit}, at every hospital that trained"
    return f"epsilon {spent:.2f} at delta {privacy.delta:g} for each {each}"


def _audit(figures: Sequence[LeakageFigure]) -> str:
    """Return what the leakage audits found at worst: that there was an audit says nothing of its result."""
    if not figures:
        return ""
    recovered = max((one for one in figures if one.recovered is not None), key=_recovered, default=None)
    members = max((one.members for one in figures if one.members is not None), default=None)
    worst = [] if recovered is None else [
        f"{recovered.recovered} % of a case recovered at worst ({recovered.chance} % by guessing)"
    ]  # fmt: skip
    worst += [] if members is None else [f"{members} of 100 patients told rightly as members or not"]
    attacked = ", ".join(sorted({one.site for one in figures}))
    return f"leakage audits at {attacked}: {', '.join(worst)} (section Leakage audit)"


def _recovered(figure: LeakageFigure) -> int:
    return figure.recovered or 0


def _protection(dossier: Dossier) -> dict[str, str]:
    """Return what protects patients: suppression, privacy, the leakage audit, agreements."""
    privacy = dossier.privacy
    bound, audit = _bound(privacy), _audit(dossier.leakage)
    both = "; ".join(one for one in (bound, audit) if one)
    approved = [one.site for one in dossier.agreements if one.approved and not one.revoked]
    fewest = dossier.smallest_group
    few = (
        f"values over fewer than {fewest} patients are withheld ({dossier.withheld_values})"
        if fewest > 1
        else ""
    )
    trained = bool(dossier.provenance)
    return {
        "disclosure": f"{few}, and what would give them by subtraction (docs/evaluation.md)" if few else "",
        "statistical": "; ".join(one for one in (few, bound) if one),
        "leakage_or_epsilon": both,
        "machine_check": "; ".join(one for one in (few, audit) if one),
        "agreements": f"the approvals of {', '.join(approved)}, by digest" if approved else "",
        "stays": "audit.jsonl lists what crossed a hospital's wall: no image or row is among it"
        if trained and dossier.log is not None
        else "",
        "security": f"{privacy.kind}: {'; '.join(privacy.notes)}"
        if privacy.kind != "none" and privacy.notes
        else "",
    }
