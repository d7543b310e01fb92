"""The limits of a run that follow from its own records: what it cannot show."""

from __future__ import annotations

from collections.abc import Iterable

from medfed.evaluation.patients import OVERLAP, RIGHTLY_EMPTY
from medfed.evaluation.report.focus import Focus, counted_of_those_concerned
from medfed.evaluation.report.formatting import interval, model_name, site_name
from medfed.evaluation.report.rounds import LOST
from medfed.evaluation.report.run import Run
from medfed.evaluation.rows import FEDERATED, Row, is_of_seed
from medfed.study.canonical import comparisons_of


def limits(run: Run, focus: Focus | None) -> list[str]:
    """Return the limits as sentences."""
    sentences = list(run.facts.folds.sentences) if run.facts.folds else _held_out(run, focus)
    sentences += run.facts.search.sentences if run.facts.search else []
    if focus is not None:
        if focus.split != "test":
            sentences.append("There is no test split: these patients were seen while the model was chosen.")
        sentences += _uncertain(run, focus)
        sentences += without_structure(run.rows, focus.split)
    if number := suppressed_values(run):
        sentences.append(f"{number} values are not shown because they come from too few patients.")
    sentences += [
        f"{site} sent {number} of its results to nobody: they are over too few patients."
        for site, number in sorted(run.withheld.items())
    ]
    sentences += _missing(run) + _left_out(run) + _one_training(run) + _dropped(run)
    for different in (run.different_labels, run.different_units):
        if different:
            sentences.append(f"{different[0].upper()}{different[1:]}.")
    sentences += [
        f"{site_name(site)}: {warning}."
        for site, warnings in sorted(run.facts.warnings.items())
        for warning in warnings
    ]
    if run.study.kind("privacy") in ("none", ""):
        sentences.append(
            "No privacy mechanism protected the updates: whoever receives one may learn about its patients."
        )
    if run.facts.task == "pretrain":
        sentences.append(
            "The model was pretrained without labels: it outlines and classifies nothing, and how well a "
            "study does that starts from it was not measured here."
        )
    if any(model.startswith("local:") for model in run.models):
        sentences.append(
            "The best single hospital's model was chosen on the patients it is reported on, which favours it."
        )
    return [*sentences, "Nothing here shows benefit or safety in care. The model is not a medical device."]


def suppressed_values(run: Run) -> int:
    """Return the number of values that are suppressed because they come from too few patients."""
    return sum(row.is_suppressed for row in run.rows)


def _held_out(run: Run, focus: Focus | None) -> list[str]:
    hospitals = [site for site in run.facts.held_out if run.took_no_part(site)]
    if not hospitals:
        return ["No hospital was held out: performance at a hospital that took no part is unknown."]
    if focus is None:
        return []
    rows = focus._replace(metric="patients", structure=None).rows(run.rows), focus.rows(run.rows)
    known = [rows[0].valued(site, FEDERATED) or rows[1].get(site, FEDERATED) for site in hospitals]
    patients = sum(row.n or 0 for row in known if row is not None)
    # Of a hospital with too few patients nothing is shown, so that it shows nothing of other hospitals.
    tested_at = sum(row is not None and bool(row.n) for row in known)
    if not tested_at:
        return [
            "No result of a hospital that took no part can be shown: too few patients, or none, were tested."
        ]
    number = f"{tested_at} hospital{'' if tested_at == 1 else 's'}"
    tested = f"It was tested at {number} that took no part, in {patients} patients."
    if tested_at < 3:
        tested += " So few hospitals cannot show how much results differ between hospitals."
    return [tested]


def _uncertain(run: Run, focus: Focus) -> list[str]:
    """Return the wide intervals and the missed structures at the hospitals that the report is about."""
    ours = [
        row
        for row in counted_of_those_concerned(run.rows)
        if row.model == FEDERATED and row.group is None and row.against is None and row.site in focus.places
    ]
    sentences = []
    wide = [row for row in ours if "wide" in (row.note or "") and row.metric == focus.metric]
    if wide:
        sentences.append(
            "The headline's interval is wide: "
            + "; ".join(f"{site_name(row.site)} {interval(row)}" for row in wide)
            + ". More patients are needed before it decides anything."
        )
    missed = [row for row in ours if row.metric == "missed" and row.value and row.split == focus.split]
    return sentences + [_missed(row) for row in missed]


def without_structure(rows: Iterable[Row], split: str) -> list[str]:
    """Return at which hospitals no patient has a structure, so that no overlap can be measured there."""
    ours = {
        (row.site, row.structure, row.metric): row
        for row in rows
        if (row.model, row.split, row.group, row.against) == (FEDERATED, split, None, None)
    }
    sentences = []
    for (site, structure, metric), row in sorted(ours.items(), key=lambda item: str(item[0])):
        patients = ours.get((site, None, "patients"))
        nobody = metric == RIGHTLY_EMPTY and patients is not None and patients.n == row.n
        overlap = ours.get((site, structure, OVERLAP))
        if nobody and row.value is not None and (overlap is None or overlap.value is None):
            sentences.append(
                f"No patient at {site_name(site)} has {structure or 'the structure'} in the reference, so "
                f"there is no Dice; nothing was predicted in {round(row.value * (row.n or 0))} of {row.n}. "
                "If it is not drawn there, say what is (`labelled` in the site file, `medfed evaluate "
                "--labelled`): then it is not measured."
            )
    return sentences


def _missed(row: Row) -> str:
    return (
        f"The federated model missed {row.structure or 'the structure'} altogether in {row.value:.0f} "
        f"of {row.n} patients at {site_name(row.site)}; their Dice counts as 0, "
        "their distance cannot be measured."
    )


def _missing(run: Run) -> list[str]:
    """Return the missing contributions, measurements and models."""
    sentences = []
    if run.rounds and run.never_merged:
        sentences.append(
            f"No update of {', '.join(run.never_merged)} was merged: the model has seen no patient of theirs."
        )
    lines = run.training_lines
    lost = [line for line in lines if line.status in LOST]
    if lost:
        sites = ", ".join(sorted({line.site for line in lost}))
        sentences.append(
            f"{len(lost)} of {len(lines)} contributions are missing, of {sites}; the model has seen less of "
            "their patients."
        )
    unmeasured, missing = sorted(run.facts.unmeasured.items()), sorted(run.facts.missing_models.items())
    sentences += [f"Nothing was measured at {site}: {why}." for site, why in unmeasured]
    sentences += [f"{model_name(model)} is missing from the comparison: {why}." for model, why in missing]
    return sentences


def _dropped(run: Run) -> list[str]:
    """Return which comparisons the run was to make once, and were left out when it was resumed."""
    asked = comparisons_of(run.study.section("evaluation"))
    dropped = [name for name in run.facts.comparisons if name not in asked]
    if not dropped:
        return []
    return [
        f"This run was also to make a comparison by {', '.join(dropped)}, which was left out when it was "
        "resumed: ask why."
    ]


def _one_training(run: Run) -> list[str]:
    """Return that the luck of the training was not measured, if the model was trained with one seed alone."""
    if not run.rounds or run.facts.folds or any(is_of_seed(model) for model in run.models):
        return []
    return [
        "This is one training: another seed, number of threads or processor gives another model, and how far "
        "its results spread was not measured (`evaluation.seeds: 3` does, in a simulation)."
    ]


def _left_out(run: Run) -> list[str]:
    """Return how many cases each hospital left out because they cannot be used."""
    return [
        f"{site} left out {sum(counts.values())} of its cases because they cannot be used "
        f"({', '.join(f'{count} {reason}' for reason, count in counts.items())}): results are of the others."
        for site, counts in sorted(run.left_out.items())
    ]
