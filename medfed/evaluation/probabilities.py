"""A classifier's case rows before they are summarised: operating points, temperature scaling, histograms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from medfed.evaluation import calibration, classification
from medfed.evaluation.disclosure import suppressed_sites, withheld_sites
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


def score_histograms(cases: Iterable[CaseRow], settings: SummarySettings) -> list[ScoreHistogram]:
    """Return histograms of predicted risk by model and hospital, coarse enough to leave the hospital.

    A hospital with too few patients of an outcome has none, nor has one whose histogram would give, beside
    the pooled values, that of such a hospital.
    """
    test = [case for case in unperturbed(cases) if case.split == "test"]
    least = settings.min_patients
    suppressed = suppressed_sites(test, settings.held_out, least)
    sizes: dict[str | None, dict[str, int]] = defaultdict(dict)
    histograms = []
    for one, p, y in _scores(test, settings):
        positives = int(np.count_nonzero(y))
        fewest = min(positives, len(y) - positives) or len(y)
        by_site = sizes[one.structure]
        by_site[one.site] = min(fewest, by_site.get(one.site, fewest))
        histograms.append(msgspec.structs.replace(one, bins=count_scores(p, y, least)))
    withheld = {name: withheld_sites(by_site, settings.held_out, least) for name, by_site in sizes.items()}
    return [
        one
        for one in histograms
        if one.bins and (one.site, "test") not in suppressed and one.site not in withheld[one.structure]
    ]


# A histogram without bins, and its patients' probabilities and outcomes.
_Scores = tuple[ScoreHistogram, NDArray[np.float64], NDArray[np.bool_]]


def _scores(test: Sequence[CaseRow], settings: SummarySettings) -> Iterator[_Scores]:
    """Yield each model's probabilities and outcomes of each class or finding at each hospital."""
    for (model, _), group in group_by_model(test).items():
        for site in sorted({case.site for case in group}):
            own = [case for case in group if case.site == site]
            for column, p, y in _columns(own, settings.classes):
                yield ScoreHistogram(settings.round, site, "test", model, (), column), p, y


def _columns(
    cases: Sequence[CaseRow], classes: Sequence[str]
) -> Iterator[tuple[str | None, NDArray[np.float64], NDArray[np.bool_]]]:
    """Yield the probabilities and outcomes of each class, of two of the second one, or of each finding."""
    findings = [case for case in cases if case.metric == FINDING]
    if findings:
        p, y, known = finding_predictions(by_patient(findings), classes)
        for number, name in enumerate(classes):
            labelled = known[:, number]
            yield name, p[labelled, number], y[labelled, number]
    probabilities = [case for case in cases if case.metric == PROBABILITY]
    if probabilities:
        p, targets = class_predictions(by_patient(probabilities), classes)
        names = class_names(classes, p.shape[1])
        for number in (1,) if p.shape[1] == 2 else range(p.shape[1]):
            yield None if p.shape[1] == 2 else names[number], p[:, number], targets == number
