"""The model card and the reporting checklists, filled from a run's own records as far as a run can know.

An answer that only a person can give is marked as such. Topics follow CLAIM 2024 (Tejani et al., Radiology:
Artificial Intelligence 2024) and TRIPOD+AI (Collins et al., BMJ 2024;385:e078378) in our words; a submission
needs the published forms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from medfed.evaluation.report.formatting import shown_values
from medfed.evaluation.report.rounds import LOST, on_all_sentence
from medfed.evaluation.report.run import Run
from medfed.evaluation.report.templates import FOLDER
from medfed.evaluation.robustness import CONDITION
from medfed.evaluation.rows import ALL_SITES, FEDERATED
from medfed.runs.provenance import joined_later, trained_names

TASKS = {
    "segment": "segmentation",
    "classify": "classification",
    "multilabel": "classification of several findings",
    "survival": "survival prediction",
    "pretrain": "self-supervised pretraining without labels",
}
_PRETRAINED = (
    "The intensities of hidden blocks of an image: no mask, class or risk. It is a start for later studies, "
    "and says nothing of a patient"
)


_SURVIVAL_OUTPUT = (
    "A patient's risk against others', and the chance of no event until the times of the Brier scores"
)
# The answer to each topic, None where a person has to write it.
Answers = dict[str, str | None]


class Checklist(msgspec.Struct, frozen=True):
    """A checklist's name, what it is, and its answers; in `templates` they are not filled in yet."""

    name: str
    source: str
    numbered: bool
    answers: Answers


class Templates(msgspec.Struct, frozen=True):
    """The content of checklists.yaml."""

    model_card: Answers
    checklists: list[Checklist]


@cache
def templates() -> Templates:
    """Return the templates of the model card and of the checklists."""
    return msgspec.yaml.decode((FOLDER / "checklists.yaml").read_bytes(), type=Templates)


def checklists(run: Run) -> list[Checklist]:
    """Return both checklists, filled."""
    statements = _statements(run)
    return [
        msgspec.structs.replace(checklist, answers=_filled(checklist.answers, statements))
        for checklist in templates().checklists
    ]


def model_card(run: Run, finding: str) -> Answers:
    """Return the model card's lines."""
    return _filled(templates().model_card, {**_statements(run), "finding": finding})


def _filled(answers: Answers, statements: Answers) -> Answers:
    """Return the answers, None where a person answers or where the run lacks a statement that is used."""
    filled: Answers = {}
    for topic, template in answers.items():
        names = re.findall(r"{(\w+)}", template or "")
        known = all(statements[name] for name in names)
        filled[topic] = template.format_map(statements) if template and known else None
    return filled


def _statements(run: Run) -> Answers:
    """Return what the run says of itself, by the names in the templates; None where it says nothing."""
    facts, study = run.facts, run.study
    rule = study.kind("rule") or "fedavg"
    task = TASKS.get(facts.task, f"{facts.task or 'prediction'} prediction")
    technique = f"Federated learning for {task}, {rule}"
    technique += "" if run.own else f" over {_hospitals(len(run.trained))}"
    held_out = ", ".join(run.tested_only)
    network = study.kind("network")
    data = study.section("data")
    beside = data.get("table") or {}
    missing = beside.get("missing", "median") if beside else data.get("missing")
    versions = ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))
    privacy = _privacy(run)
    return {
        "technique": technique,
        "model": technique + (f", network {network}" if network else ""),
        "hospitals": _trained_at(run) + (f"; tested also at {held_out}" if held_out else ""),
        "who_took_part": _who_took_part(run),
        "held_out": _held_out(run),
        "preprocessing": _preprocessing(run),
        "inputs": _inputs(data),
        "partitions": "By patient, never by image; by a salted hash of the patient where no split is given",
        "network": network or None,
        "software": versions or None,
        "uncertainty": "95 % intervals over patients (bootstrap, Student, DeLong or Wilson, by row); "
        "tests paired by patient, each also corrected by Holm",
        "privacy": privacy,
        "privacy_sentence": privacy.capitalize(),
        "excluded": _excluded(run),
        "left_out": _left_out(run) or "none reported",
        "missing": f"an empty number: {missing}" if missing else None,
        "classes": f"Classes {', '.join(facts.classes)}" if facts.classes else None,
        "output": _output(run),
        "inputs_stay": "Tables" if data.get("kind") == "table" else "Images",
        "card_output": _card_output(run),
        "digest": facts.digest or "not recorded",
        **_training(run, rule),
        **_results(run),
    }


def _hospitals(number: int) -> str:
    return f"{number} hospital{'' if number == 1 else 's'}"


def _trained_at(run: Run) -> str:
    """Return where the model was trained: the hospitals with a merged update, and those without one."""
    if run.own:
        return f"Which hospitals' updates were merged, the hub's run folder says; {run.own_updates}"
    text = (
        f"Trained at {', '.join(trained_names(run.merges, run.rounds))}"
        if run.trained
        else "No update of a hospital was merged"
    )
    if run.trained and run.never_merged:
        text += f"; planned and never merged: {', '.join(run.never_merged)}"
    return text


def _who_took_part(run: Run) -> str | None:
    """Return each hospital's merged rounds and cases, and how to verify them."""
    if run.own:
        return _own_part(run)
    if not run.trained:
        return None
    rounds = len({number for numbers in run.merges.values() for number in numbers})
    cases = {line.site: line.examples for line in run.rounds if line.status == "merged"}
    parts, later = [], joined_later(run.merges, run.rounds)
    for site, merged in run.merges.items():
        since = f", from round {later[site]} on" if site in later else ""
        text = f"{site}: {len(merged)} of {rounds} rounds{since}"
        parts.append(text + (f", {cases[site]} cases" if cases.get(site) is not None else ""))
    parts += [f"{site}: none" for site in run.never_merged]
    return (
        f"{'; '.join(parts)}. `medfed audit verify` on the run folder computes this again from the merges in "
        "the audit log, and with --site-log from a hospital's own"
    )


def _own_part(run: Run) -> str:
    """Return what a hospital's own log says that it sent, and who knows the rest."""
    stated = max((line.examples or 0 for line in run.rounds), default=0)
    cases = f", {stated} cases" if stated else ""
    return (
        f"By its own audit log {run.own_updates}{cases}. Whether they were merged, and whose else, is in the "
        "hub's log: `medfed audit verify` on the hub's run folder compares them with --site-log"
    )


def _held_out(run: Run) -> str | None:
    """Return which tested hospitals took no part, and of which the patients who trained are left out."""
    apart = [site for site in run.tested_only if run.took_no_part(site)]
    parts = [f"{run.facts.seen[site]} of {site}" for site in run.tested_only if run.facts.seen.get(site)]
    text = f"{', '.join(apart)} took no part in training" if apart else ""
    seen = f"patients who trained are not measured ({', '.join(parts)})" if parts else ""
    return "; ".join(filter(None, (text, seen))) or None


def _privacy(run: Run) -> str:
    """Return the privacy mechanism, with the epsilon spent at the site that spent most."""
    kind, privacy = run.study.kind("privacy") or "none", run.facts.privacy
    if kind == "none":
        return "no mechanism beyond keeping patients' data in the hospital"
    if not privacy.sites:
        return kind
    spent = max(site.epsilon for site in privacy.sites.values())
    return f"{kind}: epsilon {spent:.2f} spent for each {privacy.unit}, at delta {privacy.delta:g}"


def _inputs(data: Mapping[str, Any]) -> str:
    """Return what the model sees of a patient; columns of a table by their names."""
    if data.get("kind") == "table":
        return f"Columns of a table: {', '.join(data.get('features', ()))}"
    columns = (data.get("table") or {}).get("features", ())
    return f"Images, and of a table beside them: {', '.join(columns)}" if columns else "Images"


def _preprocessing(run: Run) -> str | None:
    data, steps = run.study.section("data"), []
    spacing = data.get("spacing_mm")
    if isinstance(spacing, (list, tuple)):
        steps.append("resampled to " + " × ".join(f"{value:g}" for value in spacing) + " mm")
    elif spacing == "fit":
        steps.append("each plane scaled into the patch with its proportions kept")
    elif spacing == "native":
        steps.append("not resampled")
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
        if ("left out" in note or "dropped" in note) and "cannot be used" not in note
    ]
    if unusable := _left_out(run):
        notes.append(unusable)
    return f"{'; '.join(notes)}. Reasons: a person" if notes else None


def _left_out(run: Run) -> str:
    """Return how many cases each hospital left out because they cannot be used, by reason."""
    sentences = []
    for site, counts in sorted(run.left_out.items()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        sentences.append(f"{site}: {sum(counts.values())} unusable ({reasons})")
    return "; ".join(sentences)


def _card_output(run: Run) -> str | None:
    if run.facts.task == "survival":
        return _SURVIVAL_OUTPUT
    if run.facts.task == "pretrain":
        return _PRETRAINED
    return shown_values(run.facts.classes) if run.facts.classes else None


def _output(run: Run) -> str:
    """Return what the model gives for a patient."""
    if run.facts.task == "segment":
        return "Label map"
    if run.facts.task == "survival":
        return _SURVIVAL_OUTPUT
    if run.facts.task == "pretrain":
        return _PRETRAINED
    return f"Probability; operating point {_point(run)}"


def _point(run: Run) -> str:
    """Return how the operating point was chosen: over folds it is each fold's own, and none is of all."""
    if on_all_sentence(run):
        return "0.5, as validation patients trained in the last rounds"
    return "0.5, as each fold's own is in its report" if run.facts.folds else "fixed on validation patients"


def _training(run: Run, rule: str) -> Answers:
    """Return the statements on rounds and on contributions that are missing."""
    # A site's last line may only report the final model's scores; it is no round of training.
    lost = sum(line.status in LOST for line in run.training_lines)
    number = run.number_of_rounds or run.study.section("train").get("rounds") or "several"
    start = f". {run.facts.start.sentence.rstrip('.')}" if run.facts.start else ""
    choice = f". {run.facts.chosen.sentence.rstrip('.')}" if run.facts.chosen else ""
    choice += f". {on_all.rstrip('.')}" if (on_all := on_all_sentence(run)) else ""
    removed = run.facts.postprocess
    choice += f". {removed.sentence.rstrip('.')}" if removed else ""
    missing = f"{lost} contributions of hospitals were missing" if lost else "no contribution was missing"
    missing = "1 contribution of a hospital was missing" if lost == 1 else missing
    missing = "which contributions were missing, the hub's run folder says" if run.own else missing
    counted = "; missed and invented structures are counted" if run.facts.task == "segment" else ""
    return {
        "training": f"{number} rounds, merged by {rule}; seed {run.facts.seed}{start}{choice}",
        "failures": f"{missing}{counted}",
    }


def _results(run: Run) -> Answers:
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
