"""A classifier's case rows before they are summarised: operating points, temperature scaling, histograms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from medfed.evaluation import calibration, classification
from medfed.evaluation.histograms import ScoreHistogram, count_scores
from medfed.evaluation.metrics import OperatingPoints
from medfed.evaluation.patients import (
    FINDING,
    PROBABILITY,
    SummarySettings,
    by_patient,
    class_names,
    class_predictions,
    finding_predictions,
)
from medfed.evaluation.rows import CaseRow, unperturbed

VALIDATION = "val"


def group_by_model(cases: Iterable[CaseRow]) -> dict[tuple[str, str], list[CaseRow]]:
    """Return the cases by model and split, sorted."""
    groups: dict[tuple[str, str], list[CaseRow]] = defaultdict(list)
    for case in cases:
        groups[case.model, case.split].append(case)
    return dict(sorted(groups.items()))


def operating_points(cases: Sequence[CaseRow], classes: Sequence[str]) -> dict[str, OperatingPoints]:
    """Return each model's thresholds, fixed on all validation patients that it was run on."""
    chosen = {}
    validation = [case for case in cases if case.split == VALIDATION and case.metric == PROBABILITY]
    for (model, _), some in group_by_model(validation).items():
        p, y = class_predictions(by_patient(some), classes)
        points = [classification.operating_point(p[:, number], y == number) for number in range(p.shape[1])]
        known = [point for point in points if point is not None]
        if len(known) == len(points):
            chosen[model] = OperatingPoints(known, f"Youden index on {len(y)} validation patients")
    return chosen | _points_of_findings(cases, classes)


def _points_of_findings(cases: Sequence[CaseRow], classes: Sequence[str]) -> dict[str, OperatingPoints]:
    """Return each model's threshold per finding; 0.5 where no validation patient is with or without it."""
    chosen = {}
    validation = [case for case in cases if case.split == VALIDATION and case.metric == FINDING]
    for (model, _), some in group_by_model(validation).items():
        p, y, known = finding_predictions(by_patient(some), classes)
        points = [
            classification.operating_point(p[known[:, number], number], y[known[:, number], number])
            for number in range(p.shape[1])
        ]
        unfixed = frozenset(number for number, point in enumerate(points) if point is None)
        thresholds = [0.5 if point is None else point for point in points]
        source = f"Youden index on {len(y)} validation patients"
        chosen[model] = OperatingPoints(thresholds, source, unfixed)
    return chosen


def temperature_scaled(
    cases: Sequence[CaseRow], classes: Sequence[str]
) -> tuple[list[CaseRow], dict[str, float]]:
    """Return the cases at the temperature fitted on each model's validation patients, and the temperatures.

    Guo et al., ICML 2017. The order of patients, and so AUROC, does not change; a model without validation
    patients stays as it is.
    """
    temperatures = {}
    for (model, split), some in group_by_model(c for c in cases if c.metric == PROBABILITY).items():
        if split == VALIDATION:
            p, y = class_predictions(by_patient(some), classes)
            temperatures[model] = calibration.temperature(p, y)
    if any(case.metric == FINDING for case in cases):
        return _findings_scaled(cases, classes)
    by_case: dict[tuple[str, ...], list[CaseRow]] = defaultdict(list)
    scaled = []
    for case in cases:
        if case.metric == PROBABILITY and case.model in temperatures and case.value is not None:
            by_case[case.model, case.site, case.split, case.case, case.condition or ""].append(case)
        else:
            scaled.append(case)
    for (model, *_), some in by_case.items():
        p = np.array([case.value for case in some])
        # A single row is the second class's probability; more are those of all classes.
        values = calibration.rescaled(p if len(some) == 1 else p[None], temperatures[model]).ravel()
        scaled += [
            msgspec.structs.replace(case, value=float(value))
            for case, value in zip(some, values, strict=True)
        ]
    return scaled, temperatures


def _findings_scaled(
    cases: Sequence[CaseRow], classes: Sequence[str]
) -> tuple[list[CaseRow], dict[str, float]]:
    """Return the cases of several findings at one temperature per model, fitted on all labelled findings."""
    temperatures = {}
    for (model, split), some in group_by_model(c for c in cases if c.metric == FINDING).items():
        if split == VALIDATION:
            p, y, known = finding_predictions(by_patient(unperturbed(some)), classes)
            if known.any():
                temperatures[model] = calibration.temperature(p[known], y[known].astype(np.intp))
    scaled = []
    for case in cases:
        if case.metric == FINDING and case.model in temperatures and case.value is not None:
            (value,) = calibration.rescaled([case.value], temperatures[case.model])
            scaled.append(msgspec.structs.replace(case, value=float(value)))
        else:
            scaled.append(case)
    return scaled, temperatures


def _finding_histograms(cases: Iterable[CaseRow], settings: SummarySettings) -> list[ScoreHistogram]:
    """Return the histograms of each finding, of the patients in whom it was labelled."""
    some = [case for case in unperturbed(cases) if case.metric == FINDING and case.split == "test"]
    result = []
    for (model, _), group in group_by_model(some).items():
        for site in sorted({case.site for case in group}):
            patients = by_patient([case for case in group if case.site == site])
            p, y, known = finding_predictions(patients, settings.classes)
            for number, name in enumerate(settings.classes):
                labelled = known[:, number]
                if labelled.sum() >= max(settings.min_patients, 1):
                    bins = count_scores(p[labelled, number], y[labelled, number], settings.min_patients)
                    result.append(ScoreHistogram(settings.round, site, "test", model, bins, name))
    return result


def score_histograms(cases: Iterable[CaseRow], settings: SummarySettings) -> list[ScoreHistogram]:
    """Return histograms of predicted risk by model and hospital, coarse enough to leave the hospital."""
    cases = list(cases)
    some = [case for case in unperturbed(cases) if case.metric == PROBABILITY and case.split == "test"]
    result = _finding_histograms(cases, settings)
    for (model, _), group in group_by_model(some).items():
        for site in sorted({case.site for case in group}):
            patients = by_patient([case for case in group if case.site == site])
            p, y = class_predictions(patients, settings.classes)
            if len(y) < settings.min_patients:
                continue
            names = class_names(settings.classes, p.shape[1])
            columns = {1: None} if p.shape[1] == 2 else dict(enumerate(names))
            for number, name in columns.items():
                bins = count_scores(p[:, number], y == number, settings.min_patients)
                result.append(ScoreHistogram(settings.round, site, "test", model, bins, name))
    return result
