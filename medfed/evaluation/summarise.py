"""A run folder's case rows become its rows, its histograms and its CSV, with the study's own settings.

What is written here (rows.jsonl, rows.csv, curves.jsonl, groups.jsonl) is of groups, and may leave the
hospital, unlike `cases.jsonl`. At the hub the rows are those that hospitals reported (`reported.jsonl`), and
those of cases that were evaluated there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfed.errors import RunError
from medfed.evaluation import rows
from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.comparisons import compare
from medfed.evaluation.guarantees import Level, guarantees, reported_guarantees
from medfed.evaluation.intervals import DRAWS
from medfed.evaluation.macro_means import macro_means
from medfed.evaluation.patient_groups import patient_groups
from medfed.evaluation.patients import MIN_PATIENTS, SummarySettings
from medfed.evaluation.probabilities import score_histograms, temperature_scaled
from medfed.evaluation.robustness import robustness
from medfed.evaluation.row_checks import StudyMeasures, measures_of, plausible_patients, row_error
from medfed.evaluation.row_transport import MAX_NAME
from medfed.evaluation.segmentation import TOLERANCE_MM
from medfed.evaluation.subgroups import subgroups
from medfed.registry import kinds
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.rounds import first_examples, last_round, read_rounds
from medfed.wire.untrusted_text import for_log
from medfed.wire.update import MAX_EXAMPLES

log = logging.getLogger("medfed.evaluation")


@dataclass(frozen=True)
class PublicStudy:
    """A run's study as it was written into the run folder, with every default; empty if it was not written.

    Unlike `study.Study` it is not checked, so that a run of another version still has a report.
    """

    sections: Mapping[str, Any]

    def section(self, name: str) -> Mapping[str, Any]:
        """Return one section; a kind without settings, written as its name, as a section with that kind."""
        value = self.sections.get(name)
        if isinstance(value, Mapping):
            return value
        return {"kind": value} if value else {}

    def kind(self, name: str) -> str:
        """Return the kind that a section names, or an empty string."""
        return str(self.section(name).get("kind") or "")

    @property
    def min_patients(self) -> int:
        """How many patients a group needs to be shown."""
        return int(self.section("evaluation").get("smallest_group", MIN_PATIENTS))

    @property
    def draws(self) -> int:
        """Number of bootstrap resamples."""
        return int(self.section("evaluation").get("draws", DRAWS))


def read_public_study(run: Path) -> PublicStudy:
    """Return the study that is written in a run folder.

    Raises:
        RunError: if the file is damaged.
    """
    import yaml

    folder = RunFolder(run)
    # The report may be shared: study.json is the study without the hospitals' folders.
    path = folder.public_study if folder.public_study.is_file() else folder.study
    if not path.is_file():
        return PublicStudy({})
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{path.name}: cannot be read: {type(error).__name__}; restore the file") from error
    return PublicStudy(sections if isinstance(sections, dict) else {})


def read_run_facts(run: Path) -> RunFacts:
    """Return what a run's run.json says; nothing but defaults where there is none.

    Raises:
        RunError: if the file is damaged.
    """
    folder = RunFolder(run)
    return folder.read_facts() if folder.facts.is_file() else RunFacts()


def summarise(run: Path) -> list[rows.Row]:
    """Write rows.jsonl and its companions from cases.jsonl and reported.jsonl, and return the rows.

    Rows that a hospital reported are replaced by those of its cases, where these are in the folder.

    Raises:
        RunError: a file of the run is damaged.
        DataError: case rows that contradict each other.
    """
    folder = RunFolder(run)
    facts, study = read_run_facts(run), read_public_study(run)
    every = rows.read_cases(folder.cases) if folder.cases.is_file() else []
    reported = rows.read_rows(folder.reported) if folder.reported.is_file() else []
    last = last_round(read_rounds(folder.rounds))
    settings = summary_settings(facts, study, facts.chosen.round if facts.chosen else last)
    # A guarantee is of the probabilities that `predict` writes and decides on: without a temperature.
    predicted, temperatures = rows.unperturbed(every), dict[str, float]()
    if study.section("evaluation").get("temperature"):
        every, temperatures = temperature_scaled(every, settings.classes)
    cases = rows.unperturbed(every)
    summary = aggregate(cases, settings) + compare(cases, settings) + subgroups(cases, settings)
    summary += robustness(every, settings)
    fitted = [
        _temperature_row(model, value, cases, settings) for model, value in sorted(temperatures.items())
    ]
    summary += [row for row in fitted if (row.n or 0) >= settings.min_patients]
    summary += _guarantees(predicted, folder, settings, study)
    measured = {case.site for case in every}
    elsewhere = [row for row in reported if row.site not in measured]
    believed = _believable(elsewhere, run, study, settings.classes)
    summary += believed
    if (level := _level(study)) is not None and not any(row.site == rows.EVERY_SITE for row in summary):
        summary += reported_guarantees(believed, facts.sites, settings, level)
    summary += macro_means(summary, settings.held_out)
    rows.write(folder.rows, summary)
    rows.write_csv(folder.rows_csv, summary)
    rows.write(folder.curves, score_histograms(cases, settings))
    rows.write(folder.groups, patient_groups(cases, summary, settings))
    return summary


def _guarantees(
    cases: list[rows.CaseRow], folder: RunFolder, settings: SummarySettings, study: PublicStudy
) -> list[rows.Row]:
    """Return the rows of guaranteed thresholds, if the study asks for them."""
    if (level := _level(study)) is None:
        return []
    scores = rows.read_cases(folder.scores) if folder.scores.is_file() else []
    return guarantees(cases, scores, settings, level)


def _level(study: PublicStudy) -> Level | None:
    evaluation = study.section("evaluation")
    if not evaluation.get("guarantee"):
        return None
    return Level(float(evaluation["guarantee"]), float(evaluation.get("confidence", 0.95)))


def _believable(
    reported: list[rows.Row], run: Path, study: PublicStudy, classes: Sequence[str]
) -> list[rows.Row]:
    """Return the rows that hospitals could have measured; the others are named and left out.

    The hub checked them when they arrived; an earlier medfed did not, and a file can be edited.
    """
    stated = study.section("sampling").get("max_examples", MAX_EXAMPLES)
    bound = int(stated) if stated is not None else None
    began = first_examples(read_rounds(RunFolder(run).rounds))
    measures = _measures(study, classes)
    kept = []
    for row in reported:
        why = row_error(row, plausible_patients(bound, began.get(row.site)), measures)
        if why is None:
            kept.append(row)
        else:
            name = "/".join(
                str(part) for part in (row.split, row.model, row.metric, row.structure, row.group)
            )
            log.warning(
                "reported.jsonl: a result of %s is left out: %s: %s", row.site, for_log(name, MAX_NAME), why
            )
    return kept


def _measures(study: PublicStudy, classes: Sequence[str]) -> StudyMeasures | None:
    """Return what a run's study measures; None if its task is not installed here, or it was not written."""
    task: Any = kinds("tasks").get(study.kind("task"))
    if task is None:
        return None
    tolerance_mm = float(study.section("evaluation").get("tolerance_mm", TOLERANCE_MM))
    return measures_of(task, classes, tolerance_mm)


def summary_settings(facts: RunFacts, study: PublicStudy, round: int) -> SummarySettings:
    """Return how a run's case rows are summarised."""
    return SummarySettings(
        round=round,
        seed=facts.seed,
        classes=facts.classes or [str(name) for name in study.section("task").get("classes") or ()],
        held_out=facts.held_out,
        min_patients=study.min_patients,
        draws=study.draws,
    )


def _temperature_row(
    model: str, value: float, cases: list[rows.CaseRow], settings: SummarySettings
) -> rows.Row:
    return rows.Row(
        round=settings.round,
        site=rows.ALL_SITES,
        split="val",
        model=model,
        metric="temperature",
        value=value,
        n=len({(c.site, c.patient) for c in cases if c.model == model and c.split == "val"}),
        method="most likely on validation patients (Guo 2017); every probability here is at it, but those of "
        "guarantees, which are as predicted",
    )
