"""The model card and the reporting checklists, filled from a run's own records as far as a run can know.

What only a person can know says so. Topics follow CLAIM 2024 (Tejani et al., Radiology: Artificial
Intelligence 2024) and TRIPOD+AI (Collins et al., BMJ 2024;385:e078378) in our words; a submission needs the
published forms.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from medfed.evaluation.report.formatting import shown_values
from medfed.evaluation.report.rounds import LOST
from medfed.evaluation.report.run import Run
from medfed.evaluation.robustness import CONDITION
from medfed.evaluation.rows import ALL_SITES, FEDERATED

TASKS = {"segment": "segmentation", "classify": "classification", "survival": "survival prediction"}


class Item(NamedTuple):
    """One topic of a checklist; `answer` is None where a person has to write it.

    In the lists of this module an answer is a template over the names of `_statements`. It is None, too,
    where one of the names that it uses has no statement.
    """

    number: str
    topic: str
    answer: str | None


class Checklist(NamedTuple):
    """A checklist's name, what it is, and its items."""

    name: str
    source: str
    items: tuple[Item, ...]


CLAIM = Checklist(
    "CLAIM 2024",
    "Checklist for Artificial Intelligence in Medical Imaging, topics in our words",
    (
        Item("", "Title and abstract: the technique is named", "{technique}"),
        Item("", "Background, intended use and clinical role", None),
        Item("", "Objectives and hypotheses", None),
        Item("", "Prospective or retrospective; the study's goal", None),
        Item("", "Data sources", "{hospitals}"),
        Item("", "Inclusion and exclusion criteria", None),
        Item("", "Preprocessing", "{preprocessing}"),
        Item(
            "", "De-identification", "Images stay in the hospital; updates: {privacy}. Local steps: a person"
        ),
        Item("", "Missing data and how they were handled", "{missing}"),
        Item("", "Image acquisition protocol", None),
        Item("", "Reference standard: definition, reason, annotators, their variability", None),
        Item("", "Partitions and the level at which they are disjoint", "{partitions}"),
        Item("", "Intended sample size", None),
        Item("", "Model: architecture, inputs and outputs", "{network}; see Data and settings"),
        Item("", "Software", "{software}"),
        Item("", "Initial parameters, training, choice of the final model", "{training}"),
        Item("", "Metrics", "{metrics}"),
        Item("", "Statistical measures of uncertainty", "{uncertainty}"),
        Item("", "Robustness and sensitivity", "Measured: {robustness}"),
        Item("", "Explainability", None),
        Item("", "Test on internal data", "See the matrix and the table of all measures"),
        Item("", "Test on external data", "{held_out}"),
        Item("", "Trial registration", None),
        Item("", "Flow of patients, numbers excluded", "{excluded}"),
        Item("", "Numbers in each partition", "{patients}"),
        Item("", "Demographic and clinical characteristics in each partition", None),
        Item("", "Performance with uncertainty", "First page and the table of all measures"),
        Item(
            "", "Failure analysis", "{failures}; missed and invented structures are counted. Causes: a person"
        ),
        Item("", "Limits", "Derived ones under Limits; the study's own: a person"),
        Item("", "Protocol, code, data and funding", None),
    ),
)

TRIPOD = Checklist(
    "TRIPOD+AI",
    "Transparent reporting of prediction models, items in our words",
    (
        Item("1", "Title", "{technique}"),
        Item("2", "Abstract", None),
        Item("3", "Context, target population, known inequalities", None),
        Item("4", "Objectives", None),
        Item("5", "Data: sources and dates", "{hospitals}. Dates: a person"),
        Item("6", "Participants: setting, eligibility, treatments", None),
        Item("7", "Data preparation", "{preprocessing}"),
        Item("8", "Outcome and how it was assessed", None),
        Item("9", "Predictors", "{classes}"),
        Item("10", "Sample size", "{patients}. Its reason: a person"),
        Item("11", "Missing data", "{missing}"),
        Item(
            "12",
            "Analytical methods: split, model, performance measures, heterogeneity over hospitals",
            "{partitions}. {training}. Each hospital's result is in the matrix",
        ),
        Item("13", "Class imbalance", None),
        Item("14", "Fairness", "Gaps with intervals {subgroups}; their meaning: a person"),
        Item("15", "Model output", "{output}"),
        Item("16", "Training against evaluation: differences in setting", "{held_out}"),
        Item("17", "Ethical approval", None),
        Item(
            "18",
            "Open science: funding, conflicts, protocol, registration, data, code",
            "Study digest {digest}. The rest: a person",
        ),
        Item("19", "Patient and public involvement", None),
        Item("20", "Participants: flow and characteristics", "{patients}. Characteristics: a person"),
        Item("21", "Model development: participants and events in each analysis", "{patients}"),
        Item(
            "22", "Full model specification", "Weights in the run folder; network and settings in study.yaml"
        ),
        Item(
            "23",
            "Performance with intervals, also in subgroups and hospitals",
            "First page, matrix, subgroups",
        ),
        Item("24", "Model updating", "None after the last round"),
        Item("25", "Interpretation", None),
        Item("26", "Limits", "Derived ones under Limits; the study's own: a person"),
        Item("27", "Use of the model in care", None),
    ),
)

MODEL_CARD = (
    Item("", "Model", "{model}"),
    Item("", "Output", "{card_output}"),
    Item("", "Trained on", "{hospitals}"),
    Item("", "Result", "{finding}"),
    Item("", "Privacy", "{privacy_sentence}"),
    Item("", "Intended use", None),
    Item("", "Not for", "Clinical decisions: this is the record of an experiment, not of a medical device"),
    Item("", "Licence and contact", None),
)


def checklists(run: Run) -> list[Checklist]:
    """Return both checklists, filled."""
    statements = _statements(run)
    return [checklist._replace(items=_filled(checklist.items, statements)) for checklist in (CLAIM, TRIPOD)]


def model_card(run: Run, finding: str) -> tuple[Item, ...]:
    """Return the model card's lines."""
    return _filled(MODEL_CARD, {**_statements(run), "finding": finding})


def _filled(items: tuple[Item, ...], statements: dict[str, str | None]) -> tuple[Item, ...]:
    filled = []
    for item in items:
        names = re.findall(r"{(\w+)}", item.answer or "")
        known = item.answer is not None and all(statements[name] for name in names)
        filled.append(
            item._replace(answer=item.answer.format_map(statements) if known and item.answer else None)
        )
    return tuple(filled)


def _statements(run: Run) -> dict[str, str | None]:
    """Return what the run says about itself, by the names that checklists use; None where it says nothing."""
    facts, study = run.facts, run.study
    rule = study.kind("rule") or "fedavg"
    task = TASKS.get(facts.task, f"{facts.task or 'prediction'} prediction")
    technique = f"Federated learning for {task}, {rule} over {len(facts.sites)} hospitals"
    held_out = ", ".join(facts.held_out)
    network = study.kind("network")
    missing = study.section("data").get("missing")
    versions = ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))
    privacy = _privacy(run)
    return {
        "technique": technique,
        "model": technique + (f", network {network}" if network else ""),
        "hospitals": f"Trained at {', '.join(facts.sites)}"
        + (f"; tested also at {held_out}" if held_out else ""),
        "held_out": f"{held_out} took no part in training" if held_out else None,
        "preprocessing": _preprocessing(run),
        "partitions": "By patient, never by image; by a salted hash of the patient where no split is given",
        "network": network or None,
        "software": versions or None,
        "uncertainty": "95 % intervals over patients (bootstrap, DeLong or Wilson, stated a row); tests "
        "paired by patient, corrected by Holm",
        "privacy": privacy,
        "privacy_sentence": privacy.capitalize(),
        "excluded": _excluded(run),
        "missing": f"an empty number: {missing}" if missing else None,
        "classes": f"Classes {', '.join(facts.classes)}" if facts.classes else None,
        "output": "Label map"
        if facts.task == "segment"
        else "Probability; operating point fixed on validation patients",
        "card_output": _card_output(run),
        "digest": facts.digest or "not recorded",
        **_training(run, rule),
        **_results(run),
    }


def _privacy(run: Run) -> str:
    """Return the privacy mechanism, with the epsilon spent at the site that spent most."""
    kind, privacy = run.study.kind("privacy") or "none", run.facts.privacy
    if kind == "none":
        return "no mechanism beyond keeping patients' data in the hospital"
    if not privacy.sites:
        return kind
    spent = max(site.epsilon for site in privacy.sites.values())
    return f"{kind}: epsilon {spent:.2f} spent for each {privacy.unit}, at delta {privacy.delta:g}"


def _preprocessing(run: Run) -> str | None:
    data, steps = run.study.section("data"), []
    if spacing := data.get("spacing_mm"):
        steps.append("resampled to " + " × ".join(f"{value:g}" for value in spacing) + " mm")
    if normalise := data.get("normalise"):
        kind = normalise.get("kind") if isinstance(normalise, dict) else normalise
        steps.append(f"intensities normalised by {kind}")
    return "; ".join(steps).capitalize() or None


def _excluded(run: Run) -> str | None:
    """Return what each hospital left out of its folder; why is for a person to write."""
    notes = [
        f"{site}: {note}"
        for site, notes in sorted(run.facts.notes.items())
        for note in notes
        if "left out" in note or "dropped" in note
    ]
    return f"{'; '.join(notes)}. Reasons: a person" if notes else None


def _card_output(run: Run) -> str | None:
    if run.facts.task == "survival":
        return (
            "A patient's risk against others', and the chance of living beyond the times of the Brier scores"
        )
    return shown_values(run.facts.classes) if run.facts.classes else None


def _training(run: Run, rule: str) -> dict[str, str | None]:
    """Return the statements on rounds and on contributions that are missing."""
    lost = sum(1 for line in run.rounds if line.status in LOST)
    # A site's last line may only report the final model's scores; it is no round of training.
    rounds = len({line.round for line in run.rounds if line.status != "reported"})
    number = rounds or run.study.section("train").get("rounds") or "several"
    return {
        "training": f"{number} rounds, merged by {rule}; seed {run.facts.seed}",
        "failures": f"{lost} contributions of hospitals were missing"
        if lost
        else "no contribution was missing",
    }


def _results(run: Run) -> dict[str, str | None]:
    """Return the statements on patients, metrics, subgroups and robustness."""
    ours = [row for row in run.rows if row.model == FEDERATED]
    counted = {(row.site, row.split): row.n for row in ours if row.metric == "patients"}
    patients = ", ".join(
        f"{site} {split}: {n}"
        for (site, split), n in sorted(counted.items())
        if site != ALL_SITES and n is not None
    )
    metrics = ", ".join(sorted({row.metric for row in ours if row.metric != "patients"})).replace("_", " ")
    groups = {row.group for row in run.rows if row.group}
    conditions = sorted(group.removeprefix(CONDITION) for group in groups if group.startswith(CONDITION))
    attributes = sorted({group.split("=")[0] for group in groups if not group.startswith(CONDITION)})
    return {
        "patients": patients or None,
        "metrics": metrics or "none",
        "subgroups": f"by {', '.join(attributes)}".replace("_", " ") if attributes else None,
        "robustness": ", ".join(conditions) or None,
    }
