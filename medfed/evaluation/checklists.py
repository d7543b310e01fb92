"""The model card and the reporting checklists, filled from the run's own ledger as far as a run can know.

What only a person can know says so. Topics follow CLAIM 2024 (Tejani et al., Radiology: Artificial
Intelligence 2024) and TRIPOD+AI (Collins et al., BMJ 2024;385:e078378) in our words; a submission needs the
published forms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medfed.evaluation.robustness import CONDITION
from medfed.evaluation.rows import FEDERATED, Row
from medfed.runs.rounds import RoundLine

# Shown where the run cannot know.
PERSON = None


class Item(NamedTuple):
    """One thing that a reader must be told; `answer` is None where a person has to write it."""

    number: str
    topic: str
    answer: str | None


def _kind(study: Mapping[str, Any], section: str) -> str | None:
    value = study.get(section)
    if isinstance(value, Mapping):
        return str(value.get("kind")) if value.get("kind") else None
    return str(value) if value else None


def _get(study: Mapping[str, Any], section: str, key: str) -> Any:
    value = study.get(section)
    return value.get(key) if isinstance(value, Mapping) else None


class _Known(NamedTuple):
    """What the run says about itself, in sentences."""

    technique: str
    hospitals: str
    held_out: str | None
    preprocessing: str | None
    partitions: str
    patients: str | None
    network: str | None
    training: str
    software: str | None
    metrics: str
    uncertainty: str
    subgroups: str | None
    privacy: str
    excluded: str | None
    missing: str | None
    robustness: str | None
    failures: str | None


def _known(
    about: Mapping[str, Any], study: Mapping[str, Any], rows: Sequence[Row], rounds: Sequence[RoundLine]
) -> _Known:
    sites, apart = about.get("sites", []), about.get("held_out", [])
    task = {"segment": "segmentation", "classify": "classification", "survival": "survival prediction"}
    name = task.get(str(about.get("task")), f"{about.get('task', 'prediction')} prediction")
    rule, privacy = _kind(study, "rule") or "fedavg", _kind(study, "privacy") or "none"
    counted = {
        (row.site, row.split): row.n for row in rows if row.metric == "patients" and row.model == FEDERATED
    }
    patients = ", ".join(
        f"{site} {split}: {n}"
        for (site, split), n in sorted(counted.items())
        if site != "all" and n is not None
    )
    data = study.get("data") if isinstance(study.get("data"), Mapping) else {}
    assert isinstance(data, Mapping)
    spacing = data.get("spacing_mm")
    normalise = data.get("normalise")
    steps = []
    if spacing:
        steps.append("resampled to " + " × ".join(f"{value:g}" for value in spacing) + " mm")
    if isinstance(normalise, Mapping):
        steps.append(f"intensities normalised by {normalise.get('kind')}")
    elif normalise:
        steps.append(f"intensities normalised by {normalise}")
    versions = about.get("versions") or {}
    metrics = sorted({row.metric for row in rows if row.model == FEDERATED and row.metric != "patients"})
    groups = sorted({row.group.split("=")[0] for row in rows if row.group} - {CONDITION.rstrip("=")})
    conditions = sorted(
        {row.group.removeprefix(CONDITION) for row in rows if row.group and row.group.startswith(CONDITION)}
    )
    lost = sum(1 for entry in rounds if entry.status in ("absent", "refused", "late"))
    # A last line a site only reports the final model's scores; it is no round of training.
    merged = {entry.round for entry in rounds if entry.status != "reported"}
    number = len(merged) or _get(study, "train", "rounds")
    return _Known(
        technique=f"Federated learning for {name}, {rule} over {len(sites)} hospitals",
        hospitals="Trained at "
        + ", ".join(map(str, sites))
        + ("; tested also at " + ", ".join(apart) if apart else ""),
        held_out=f"{', '.join(apart)} took no part in training" if apart else None,
        preprocessing="; ".join(steps).capitalize() or None,
        partitions="By patient, never by image; by a salted hash of the patient where no split is given",
        patients=patients or None,
        network=_kind(study, "network"),
        training=f"{number or 'several'} rounds, merged by {rule}; seed {about.get('seed', 'not known')}",
        software=", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or None,
        metrics=", ".join(name.replace("_", " ") for name in metrics) or "none",
        uncertainty="95 % intervals over patients (bootstrap, DeLong or Wilson, stated a row); tests paired "
        "by patient, corrected by Holm",
        subgroups=("by " + ", ".join(group.replace("_", " ") for group in groups)) if groups else None,
        privacy="no mechanism beyond keeping patients' data in the hospital"
        if privacy == "none"
        else f"{privacy}{spent(about)}",
        excluded=excluded(about),
        missing=f"an empty number: {data['missing']}" if data.get("missing") else None,
        robustness=", ".join(conditions) or None,
        failures=f"{lost} contributions of hospitals were missing" if lost else "no contribution was missing",
    )


def spent(about: Mapping[str, Any]) -> str:
    """Return what differential privacy cost at the site that spent most, or nothing where none was counted."""
    privacy = about.get("privacy") or {}
    found = [site["epsilon"] for site in (privacy.get("sites") or {}).values()]
    if not found:
        return ""
    return f": epsilon {max(found):.2f} spent for each {privacy['unit']}, at delta {privacy['delta']:g}"


def excluded(about: Mapping[str, Any]) -> str | None:
    """Return what each hospital left out of its folder, by the run's own notes; why is for a person to write."""
    found = [
        f"{site}: {note}"
        for site, notes in sorted((about.get("notes") or {}).items())
        for note in notes
        if "left out" in note or "dropped" in note
    ]
    return f"{'; '.join(found)}. Reasons: a person" if found else None


def filled(
    about: Mapping[str, Any], study: Mapping[str, Any], rows: Sequence[Row], rounds: Sequence[RoundLine]
) -> list[tuple[str, str, list[Item]]]:
    """Return each checklist's name, source and items."""
    k = _known(about, study, rows, rounds)
    claim = [
        Item("", "Title and abstract: the technique is named", k.technique),
        Item("", "Background, intended use and clinical role", PERSON),
        Item("", "Objectives and hypotheses", PERSON),
        Item("", "Prospective or retrospective; the study's goal", PERSON),
        Item("", "Data sources", k.hospitals),
        Item("", "Inclusion and exclusion criteria", PERSON),
        Item("", "Preprocessing", k.preprocessing),
        Item(
            "",
            "De-identification",
            f"Images stay in the hospital; updates: {k.privacy}. Local steps: a person",
        ),
        Item("", "Missing data and how they were handled", k.missing),
        Item("", "Image acquisition protocol", PERSON),
        Item("", "Reference standard: definition, reason, annotators, their variability", PERSON),
        Item("", "Partitions and the level at which they are disjoint", k.partitions),
        Item("", "Intended sample size", PERSON),
        Item(
            "",
            "Model: architecture, inputs and outputs",
            k.network and f"{k.network}; see Data and settings",
        ),
        Item("", "Software", k.software),
        Item("", "Initial parameters, training, choice of the final model", k.training),
        Item("", "Metrics", k.metrics),
        Item("", "Statistical measures of uncertainty", k.uncertainty),
        Item("", "Robustness and sensitivity", k.robustness and f"Measured: {k.robustness}"),
        Item("", "Explainability", PERSON),
        Item("", "Test on internal data", "See the matrix and the table of all measures"),
        Item("", "Test on external data", k.held_out),
        Item("", "Trial registration", PERSON),
        Item("", "Flow of patients, numbers excluded", k.excluded),
        Item("", "Numbers in each partition", k.patients),
        Item("", "Demographic and clinical characteristics in each partition", PERSON),
        Item("", "Performance with uncertainty", "First page and the table of all measures"),
        Item(
            "",
            "Failure analysis",
            f"{k.failures}; missed and invented structures are counted. Causes: a person",
        ),
        Item("", "Limits", "Derived ones under Limits; the study's own: a person"),
        Item("", "Protocol, code, data and funding", PERSON),
    ]
    tripod = [
        Item("1", "Title", k.technique),
        Item("2", "Abstract", PERSON),
        Item("3", "Context, target population, known inequalities", PERSON),
        Item("4", "Objectives", PERSON),
        Item("5", "Data: sources and dates", f"{k.hospitals}. Dates: a person"),
        Item("6", "Participants: setting, eligibility, treatments", PERSON),
        Item("7", "Data preparation", k.preprocessing),
        Item("8", "Outcome and how it was assessed", PERSON),
        Item(
            "9",
            "Predictors",
            f"Classes {', '.join(map(str, about.get('classes', [])))}" if about.get("classes") else PERSON,
        ),
        Item("10", "Sample size", k.patients and f"{k.patients}. Its reason: a person"),
        Item("11", "Missing data", k.missing),
        Item(
            "12",
            "Analytical methods: split, model, performance measures, heterogeneity over hospitals",
            f"{k.partitions}. {k.training}. Each hospital's result is in the matrix",
        ),
        Item("13", "Class imbalance", PERSON),
        Item("14", "Fairness", k.subgroups and f"Gaps with intervals {k.subgroups}; their meaning: a person"),
        Item(
            "15",
            "Model output",
            "Label map"
            if about.get("task") == "segment"
            else "Probability; operating point fixed on validation patients",
        ),
        Item("16", "Training against evaluation: differences in setting", k.held_out),
        Item("17", "Ethical approval", PERSON),
        Item(
            "18",
            "Open science: funding, conflicts, protocol, registration, data, code",
            f"Study digest {about.get('digest', 'not recorded')}. The rest: a person",
        ),
        Item("19", "Patient and public involvement", PERSON),
        Item(
            "20",
            "Participants: flow and characteristics",
            k.patients and f"{k.patients}. Characteristics: a person",
        ),
        Item("21", "Model development: participants and events in each analysis", k.patients),
        Item(
            "22", "Full model specification", "Weights in the run folder; network and settings in study.yaml"
        ),
        Item(
            "23",
            "Performance with intervals, also in subgroups and hospitals",
            "First page, matrix, subgroups",
        ),
        Item("24", "Model updating", "None after the last round"),
        Item("25", "Interpretation", PERSON),
        Item("26", "Limits", "Derived ones under Limits; the study's own: a person"),
        Item("27", "Use of the model in care", PERSON),
    ]
    return [
        (
            "CLAIM 2024",
            "Checklist for Artificial Intelligence in Medical Imaging, topics in our words",
            claim,
        ),
        ("TRIPOD+AI", "Transparent reporting of prediction models, items in our words", tripod),
    ]


def _output(about: Mapping[str, Any]) -> str | None:
    if about.get("task") == "survival":
        return (
            "A patient's risk against others', and the chance of living beyond the times of the Brier scores"
        )
    return ", ".join(map(str, about.get("classes", []))) or PERSON


def model_card(about: Mapping[str, Any], study: Mapping[str, Any], finding: str) -> list[Item]:
    """Return the model card's lines."""
    k = _known(about, study, [], [])
    return [
        Item("", "Model", f"{k.technique}{f', network {k.network}' if k.network else ''}"),
        Item("", "Output", _output(about)),
        Item("", "Trained on", k.hospitals),
        Item("", "Result", finding),
        Item("", "Privacy", k.privacy.capitalize()),
        Item("", "Intended use", PERSON),
        Item(
            "", "Not for", "Clinical decisions: this is the record of an experiment, not of a medical device"
        ),
        Item("", "Licence and contact", PERSON),
    ]
