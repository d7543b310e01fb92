"""One model's patients as the group that its metrics are computed from, and every metric of such a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from medfed.evaluation import metrics
from medfed.evaluation.disclosure import patients_behind_mean
from medfed.evaluation.intervals import Floats, Interval
from medfed.evaluation.metrics import (
    CaseGroup,
    ClassGroup,
    Estimate,
    FindingsGroup,
    OperatingPoints,
    SurvivalGroup,
    metric_of,
    unfixed_points,
)
from medfed.evaluation.patients import (
    FINDING,
    PROBABILITY,
    RIGHTLY_EMPTY,
    RISK,
    Patients,
    SummarySettings,
    class_names,
    class_predictions,
    finding_predictions,
    is_open,
    survival_predictions,
)

Group = CaseGroup | ClassGroup | FindingsGroup | SurvivalGroup


def group_of(patients: Patients, settings: SummarySettings, points: OperatingPoints | None = None) -> Group:
    """Return the patients as the group that suits their predictions; `points` are a classifier's thresholds.

    Raises:
        DataError: if a patient lacks a prediction or a target, or the rows name other classes.
    """
    resampling = settings.resampling(patients.sites)
    names = {metric for _, metric in patients.values}
    if PROBABILITY in names:
        p, y = class_predictions(patients, settings.classes)
        return ClassGroup.of(p, y, class_names(settings.classes, p.shape[1]), resampling, points)
    if FINDING in names:
        predictions, known = finding_predictions(patients, settings.classes), settings.classes
        points = points or unfixed_points(len(known))
        return FindingsGroup(predictions, known, points, resampling, settings.min_patients)
    if RISK in names:
        return SurvivalGroup(survival_predictions(patients), resampling, settings.min_patients)
    return CaseGroup(patients, resampling, settings.min_patients)


def estimates(group: Group) -> list[Estimate]:
    """Return every metric of a group, in the order of the families' ranks."""
    if isinstance(group, ClassGroup):
        return _of_classes(group)
    if isinstance(group, FindingsGroup):
        return _of_findings(group)
    if isinstance(group, SurvivalGroup):
        return _listed(None, (family.of_group(group) for family in metrics.families(metrics.SurvivalMetrics)))
    return _of_cases(group)


def _of_classes(group: ClassGroup) -> list[Estimate]:
    """Return the metrics of a classifier; two classes are one question, more are also taken together."""
    families = metrics.families(metrics.ClassificationMetrics)
    if group.binary:
        return _listed(None, (family.of_class(group.single(1)) for family in families))
    result = _listed(None, (family.over_classes(group) for family in families))
    for number, name in enumerate(group.names):
        single = group.single(number)
        result += _listed(name, (family.of_class(single) for family in families))
    return result


def _of_findings(group: FindingsGroup) -> list[Estimate]:
    """Return the metrics over all findings, then those of each finding that was labelled in a patient."""
    families = metrics.families(metrics.ClassificationMetrics)
    result = _listed(None, (family.over_findings(group) for family in families))
    for number, name in enumerate(group.names):
        single = group.single(number)
        result += _listed(name, (family.of_class(single) for family in families)) if len(single.p) else []
    return result


def _listed(structure: str | None, results: Iterable[Mapping[str, Interval]]) -> list[Estimate]:
    return [Estimate(name, structure, interval) for result in results for name, interval in result.items()]


def _of_cases(group: CaseGroup) -> list[Estimate]:
    result = []
    for (structure, name), values in over_structures(group.patients).items():
        family = metrics.family_of(name)
        if isinstance(family, metrics.CaseMetrics):
            result += family.over_patients(name, structure, values, group)
        else:
            # The metric's package is not installed here, so only its mean can be computed.
            result.append(metrics.mean_over_patients(name, structure, values, group))
    for family in metrics.families(metrics.CaseMetrics):
        result += family.over_group(group)
    return result


def patients_behind(group: Group, metric: str, structure: str | None, min_patients: int) -> int:
    """Return the fewest patients that a metric of a group says something of; 0 if it has no value.

    Of a metric by outcome these are the patients of the rarer outcome, of a mean over structures perhaps
    those who lack one (`disclosure.patients_behind_mean`).
    """
    if isinstance(group, ClassGroup):
        return _behind_class(group, metric, structure)
    if isinstance(group, FindingsGroup):
        if structure is None:
            return int(group.predictions.known.any(axis=1).sum())
        outcomes = group.outcomes(group.names.index(structure))
        return min(outcomes) if metric_of(metric).by_outcome else sum(outcomes)
    if isinstance(group, SurvivalGroup):
        return int(group.patients.events.sum())
    values = over_structures(group.patients).get((structure, metric))
    if values is None:
        return 0
    patients = int(np.isfinite(values).sum())
    columns = [column for (name, its), column in group.patients.values.items() if name and its == metric]
    if structure is not None or not patients or not columns:
        return patients
    return patients_behind_mean(np.isfinite(np.stack(columns)), min_patients)


def open_patients(group: Group, metric: str, structure: str | None) -> int:
    """Return how many patients a mean says something of, beside the published counts of absences.

    0 if that is nobody, or the metric is no mean over patients; of a mean over structures, the fewest of any;
    of a difference of sizes and its limits, of the sizes too, which it gives beside the other one.
    """
    if not isinstance(group, CaseGroup) or metric == RIGHTLY_EMPTY:
        return 0  # a share of patients is a count itself
    values = over_structures(group.patients) if structure is None else group.patients.values
    names = [key for key in values if key[1] in _sources(metric) and structure in (None, key[0])]
    counts = [int(is_open(group.patients, key[0], values[key]).sum()) for key in names]
    columns = [key for key in names if structure is None and key[0] is not None]
    if len(columns) > 1:
        known = np.isfinite(np.stack([values[key] for key in columns]))
        open_ = np.stack([is_open(group.patients, key[0], values[key]) for key in columns])
        counts.append(patients_behind_mean(known, group.min_patients, open_))
    return min((count for count in counts if count), default=0)


def _sources(metric: str) -> tuple[str, ...]:
    """Return the metrics of single patients that a metric tells of: of a size's difference both sizes too."""
    difference = metric.replace("_limit_low_", "_difference_").replace("_limit_high_", "_difference_")
    if "_difference_" not in difference:
        return (metric,)
    predicted = difference.replace("_difference_", "_")
    return difference, predicted, f"reference_{predicted}"


def _behind_class(group: ClassGroup, metric: str, structure: str | None) -> int:
    outcomes, patients = group.outcomes(), len(group.y)
    if not metric_of(metric).by_outcome:
        return patients
    if structure is None and not group.binary:
        return min(outcomes)
    positives = outcomes[1] if structure is None else outcomes[list(group.names).index(structure)]
    return min(positives, patients - positives)


def over_structures(patients: Patients) -> dict[tuple[str | None, str], Floats]:
    """Return the values by structure and metric, with each patient's mean over structures under None."""
    values = dict(patients.values)
    structures = sorted({structure for structure, _ in values if structure is not None})
    for name in sorted({metric for _, metric in values}) if len(structures) > 1 else ():
        if metrics.metric_of(name).over_structures:
            table = np.stack([values[s, name] for s in structures if (s, name) in values])
            known = np.isfinite(table)
            total = np.where(known, table, 0.0).sum(axis=0)
            undefined = np.full(total.shape, np.nan)
            values[None, name] = np.divide(total, known.sum(axis=0), out=undefined, where=known.any(axis=0))
    return dict(sorted(values.items(), key=lambda item: (item[0][1], item[0][0] or "")))
