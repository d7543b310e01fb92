"""Case rows of one model and split, summarised by patient: the mean over each patient's images.

Patients are what `n` counts and what is resampled, so a patient's images are averaged before anything else.

An overlap is of patients in whose reference the structure is, so it is of the same patients for every model.
What a model finds where nothing is, it invented: such images count in `RIGHTLY_EMPTY`, their specificity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from medfed.errors import DataError
from medfed.evaluation.intervals import DRAWS, Floats, Resampling
from medfed.evaluation.rows import CaseRow
from medfed.evaluation.segmentation import ABSENT, FALSE_POSITIVE, MISSED

# A group of fewer patients is suppressed, unless the study or the hospital says otherwise.
MIN_PATIENTS = 5

# The metrics of case rows that hold predictions, from which a group's metrics are computed.
PROBABILITY = "probability"
FINDING = "finding"
RISK = "risk"
SURVIVAL = "survival@"

# The share of a patient's images without a structure in which none was predicted, by the notes of `OVERLAP`.
RIGHTLY_EMPTY = "rightly_empty"
OVERLAP = "dice"


class SummarySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How case rows are summarised over patients.

    Args:
        round: the round that the models are of.
        seed: seed of every bootstrap and permutation.
        classes: a classifier's classes in the order of their numbers; of two, the second is the positive one.
        held_out: hospitals that took no part in training; they are not pooled with the others.
        min_patients: how many patients a group needs to be shown.
        draws: number of bootstrap resamples.
    """

    round: int
    seed: int
    classes: Sequence[str] = ()
    held_out: Sequence[str] = ()
    min_patients: int = MIN_PATIENTS
    draws: int = DRAWS

    def resampling(self, strata: Sequence[str]) -> Resampling:
        """Return how patients of these hospitals (one name per patient) are resampled."""
        return Resampling(self.seed, strata, self.draws)


class Patients(NamedTuple):
    """One model's patients of one split, with one value per patient by structure and metric."""

    patients: list[str]
    sites: list[str]
    values: dict[tuple[str | None, str], Floats]
    notes: dict[tuple[str | None, str], list[list[str]]]
    targets: dict[tuple[str | None, str], Floats]
    events: dict[tuple[str | None, str], NDArray[np.bool_]]


def by_patient(cases: Sequence[CaseRow]) -> Patients:
    """Return one value per patient, the mean over the patient's images; NaN where no image has a value.

    Raises:
        DataError: if a patient's survival times differ, or the cases differ in their condition.
    """
    conditions = sorted({case.condition or "none" for case in cases})
    if len(conditions) > 1:
        raise DataError(
            f"case rows of model '{cases[0].model}' at site '{cases[0].site}': patients can't be "
            f"summarised over the conditions {', '.join(conditions)}; give the cases of one"
        )
    cases = _of_highest_class(cases)
    names = sorted({(case.site, case.patient) for case in cases})
    place = {name: index for index, name in enumerate(names)}
    collected: dict[tuple[str | None, str], list[list[CaseRow]]] = {}
    for case in cases:
        key = (case.structure, case.metric)
        # Not setdefault, which would make one list per patient for every case row.
        if key not in collected:
            collected[key] = [[] for _ in names]
        collected[key][place[case.site, case.patient]].append(case)
    values, notes, targets, events = {}, {}, {}, {}
    for key, lists in collected.items():
        if key[1] == FINDING:
            lists = [_deciding(cases) for cases in lists]
        values[key] = np.array([_mean([_counted(case) for case in cases]) for cases in lists])
        notes[key] = [[case.note for case in cases if case.note] for cases in lists]
        targets[key] = np.array([_single(cases) for cases in lists])
        events[key] = np.array([any(case.event or False for case in cases) for cases in lists])
        empty = np.array([_rightly_empty(cases) for cases in lists]) if key[1] == OVERLAP else np.empty(0)
        if np.isfinite(empty).any():
            values[key[0], RIGHTLY_EMPTY] = empty
    return Patients(
        [patient for _, patient in names], [site for site, _ in names], values, notes, targets, events
    )


def is_open(patients: Patients, structure: str | None, values: Floats) -> NDArray[np.bool_]:
    """Return whose values of a structure's metric the published counts of absences do not give away.

    A patient in whom a structure is missed has no predicted volume and an overlap of 0: of twelve patients
    with eleven missed the mean is the twelfth patient's value. `structure` None is any of them.
    """
    if not (values == 0.0).any():
        return np.asarray(np.isfinite(values))
    absences = {MISSED, FALSE_POSITIVE, ABSENT}
    counted = np.zeros(len(values), dtype=bool)
    for (name, metric), notes in patients.notes.items():
        if metric == OVERLAP and structure in (None, name):
            counted |= np.array([not absences.isdisjoint(some) for some in notes], dtype=bool)
    return np.asarray(np.isfinite(values) & ~(counted & (values == 0.0)))


def _counted(case: CaseRow) -> float | None:
    """Return a case's value for a group's mean: none for a structure that is only in the prediction."""
    return None if case.note == FALSE_POSITIVE else case.value


def _rightly_empty(cases: list[CaseRow]) -> float:
    """Return the share of the images without a structure in which none was predicted, NaN if all have it."""
    return _mean([float(case.note == ABSENT) for case in cases if case.note in (ABSENT, FALSE_POSITIVE)])


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else np.nan


def _deciding(cases: list[CaseRow]) -> list[CaseRow]:
    """Return the images of a patient that decide on a finding: those that show it, else those without it.

    Findings come and go between a patient's images. A patient with the finding in some image counts once, as
    one with it, by the images that show it; images in which it was not labelled count only alone.
    """
    labelled = [case for case in cases if case.target is not None]
    return [case for case in labelled if case.target] or labelled or cases


def _of_highest_class(cases: Sequence[CaseRow]) -> Sequence[CaseRow]:
    """Return the rows without a classifier's of images that do not decide on their patient's class.

    A patient with images of several classes counts once, as of the class with the highest number, which of
    two is the positive one, by the images of this class. Rows of an image are in the order of the classes.
    """
    numbers: dict[str | None, int] = {}
    classes: dict[tuple[str, str, str], int] = {}
    highest: dict[tuple[str, str], int] = {}
    for case in cases:
        if case.metric == PROBABILITY:
            number = numbers.setdefault(case.structure, len(numbers) + 1)
            of_case = number if case.target else classes.get((case.site, case.patient, case.case), 0)
            classes[case.site, case.patient, case.case] = of_case
            patient = (case.site, case.patient)
            highest[patient] = max(of_case, highest.get(patient, 0))
    return [
        case
        for case in cases
        if case.metric != PROBABILITY
        or classes[case.site, case.patient, case.case] == highest[case.site, case.patient]
    ]


def _single(cases: list[CaseRow]) -> float:
    targets = {case.target for case in cases if case.target is not None}
    if len(targets) > 1:
        raise DataError(
            f"patient {cases[0].patient} at site {cases[0].site}: cases with different targets, "
            "but a patient is summarised once; give all cases of the patient one target, or each its own "
            "patient id"
        )
    return targets.pop() if targets else np.nan


def class_predictions(patients: Patients, classes: Sequence[str]) -> tuple[Floats, NDArray[np.intp]]:
    """Return (patients, classes) probabilities, from one row per class or the second class's, and targets.

    Raises:
        DataError: if a patient lacks a probability or a target, or the rows name other classes.
    """
    keys = [key for key in patients.values if key[1] == PROBABILITY]
    columns, targets = [patients.values[key] for key in keys], [patients.targets[key] for key in keys]
    if any(not np.isfinite(column).all() for column in [*columns, *targets]):
        raise DataError(
            "a patient lacks a probability or a target; predict every case, or omit it in all models"
        )
    if len(keys) == 1:
        return np.stack([1 - columns[0], columns[0]], axis=1), targets[0].astype(np.intp)
    columns_by_class = {structure: column for column, (structure, _) in enumerate(keys)}
    order = [columns_by_class[name] for name in classes if name in columns_by_class]
    if len(order) != len(keys):
        names = sorted(map(str, columns_by_class))
        raise DataError(f"rows name the classes {names}, the study {sorted(classes)}")
    p = np.stack([columns[place] for place in order], axis=1)
    return p, np.stack([targets[place] for place in order], axis=1).argmax(axis=1)


class FindingPredictions(NamedTuple):
    """Each patient's probability of each finding, whether it is present, and whether that is known.

    All are (patients, findings).
    """

    p: Floats
    y: NDArray[np.bool_]
    known: NDArray[np.bool_]


def finding_predictions(patients: Patients, classes: Sequence[str]) -> FindingPredictions:
    """Return the predictions of several findings, in the order of `classes`.

    Raises:
        DataError: if a patient lacks a probability, or the rows name other findings.
    """
    names = {str(structure) for structure, metric in patients.values if metric == FINDING}
    if names != set(classes):
        raise DataError(f"rows name the findings {sorted(names)}, the study {sorted(classes)}")
    p = np.stack([patients.values[name, FINDING] for name in classes], axis=1)
    targets = np.stack([patients.targets[name, FINDING] for name in classes], axis=1)
    if not np.isfinite(p).all():
        raise DataError("a patient lacks a probability; predict every case, or omit it in all models")
    return FindingPredictions(p, targets == 1, np.isfinite(targets))


def class_names(classes: Sequence[str], columns: int) -> list[str]:
    """Return the names of a classifier's columns: the classes if their number fits, else numbers."""
    return list(classes) if len(classes) == columns else [str(number) for number in range(columns)]


class SurvivalPredictions(NamedTuple):
    """Each patient's predicted risk, time, event, and predicted probability of living beyond some times."""

    risks: Floats
    times: Floats
    events: NDArray[np.bool_]
    curves: dict[float, Floats]


def survival_predictions(patients: Patients) -> SurvivalPredictions:
    """Return one model's predictions of survival, one per patient.

    Raises:
        DataError: if a patient lacks a risk or a time.
    """
    key = next(key for key in patients.values if key[1] == RISK)
    risks, times, events = patients.values[key], patients.targets[key], patients.events[key]
    if not (np.isfinite(risks) & np.isfinite(times)).all():
        raise DataError("a patient lacks a risk or a time; predict every case, or omit it in all models")
    curves = {
        float(metric.removeprefix(SURVIVAL)): values
        for (_, metric), values in patients.values.items()
        if metric.startswith(SURVIVAL)
    }
    return SurvivalPredictions(risks, times, events, curves)
