"""Metrics by the file: one family per module, whose records say how reports label, order and compare them.

To add a metric, add a module with one family, named after its tag: a subclass of `SegmentationMetrics`
(masks), `ClassificationMetrics` (class probabilities), `SurvivalMetrics` (risks and times) or
`PredictionMetrics` (the predictions of a task of your own), and give it a test against an independent
implementation. A package outside medfed adds a family through the entry point group `medfed.metrics`. Rows,
report and comparison take everything else from the `Metric` records.

>>> metric_of("hd95_mm").unit
'mm'
>>> metric_of("brier@12").title
'Brier score at 12'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from medfed.evaluation import segmentation
from medfed.evaluation.intervals import Floats, Interval
from medfed.evaluation.metrics._cases import (
    CaseGroup,
    CaseMetrics,
    CasePrediction,
    PredictionMetrics,
    SegmentationMetrics,
    mean_over_patients,
)
from medfed.evaluation.metrics._classes import (
    ClassGroup,
    ClassificationMetrics,
    OneClass,
    OperatingPoints,
    macro,
)
from medfed.evaluation.metrics._metric import (
    CaseValue,
    Difference,
    Estimate,
    Metric,
    MetricFamily,
    SubgroupStatistic,
)
from medfed.evaluation.metrics._survival import SurvivalGroup, SurvivalMetrics
from medfed.evaluation.patients import Patients
from medfed.registry import kinds

__all__ = [
    "CaseGroup",
    "CaseMetrics",
    "CasePrediction",
    "CaseValue",
    "ClassGroup",
    "ClassificationMetrics",
    "Difference",
    "Estimate",
    "Measured",
    "Metric",
    "MetricFamily",
    "OneClass",
    "OperatingPoints",
    "PredictionMetrics",
    "SegmentationMetrics",
    "SubgroupStatistic",
    "SurvivalGroup",
    "SurvivalMetrics",
    "classification_estimates",
    "families",
    "family_of",
    "headline_metrics",
    "macro",
    "mean_over_patients",
    "measure_masks",
    "metric_of",
    "over_structures",
    "survival_estimates",
]

# The rank of a metric that no family describes, such as one of a plug-in that is not installed here.
UNKNOWN_RANK = 10_000

Family = TypeVar("Family", bound=MetricFamily)


@cache
def families(base: type[Family]) -> tuple[Family, ...]:
    """Return the families that are of a base, the best-ranked first."""
    built = [kind() for kind in kinds("metrics").values() if issubclass(kind, base)]
    return tuple(sorted(built, key=lambda family: min(metric.rank for metric in family.metrics)))


@cache
def family_of(name: str) -> MetricFamily | None:
    """Return the family that computes a metric, or None if none is known."""
    every = families(MetricFamily)
    exact = (family for family in every for metric in family.metrics if metric.name == name)
    return next(exact, None) or next((family for family in every if family.describe(name)), None)


@cache
def metric_of(name: str) -> Metric:
    """Return the record of the metric of this name; an unknown metric has its name as the title."""
    family = family_of(name)
    known = family.describe(name) if family is not None else None
    return known or Metric(
        name, name.replace("_", " "), UNKNOWN_RANK, better="none", lowest=None, highest=None
    )


@cache
def headline_metrics() -> tuple[Metric, ...]:
    """Return the metrics that a report can be about, best first."""
    every = [metric for family in families(MetricFamily) for metric in family.metrics if metric.headline]
    return tuple(sorted(every, key=lambda metric: metric.rank))


class Measured(NamedTuple):
    """One metric of one structure of one case; a missing value has its reason in `note`."""

    structure: str
    metric: str
    value: float | None
    note: str | None


def measure_masks(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Sequence[float],
    structures: Mapping[int, str],
    tolerance_mm: float = 2.0,
    form: segmentation.Form = "voxel",
) -> list[Measured]:
    """Return every metric of every structure of one case; the arguments are `split_structures`'s.

    Raises:
        LabelError: if the masks, the spacing or the tolerance are invalid.
    """
    split = segmentation.split_structures(prediction, reference, spacing_mm, structures, tolerance_mm, form)
    return [
        Measured(name, metric, value, note)
        for name, masks in split
        for family in families(SegmentationMetrics)
        for metric, (value, note) in family.measure(masks).items()
    ]


def classification_estimates(group: ClassGroup) -> list[Estimate]:
    """Return every metric of a classifier; two classes are one question, more are also taken together."""
    every = families(ClassificationMetrics)
    if group.binary:
        return _estimates(None, (family.of_class(group.single(1)) for family in every))
    found = _estimates(None, (family.over_classes(group) for family in every))
    for number, name in enumerate(group.names):
        single = group.single(number)
        found += _estimates(name, (family.of_class(single) for family in every))
    return found


def survival_estimates(group: SurvivalGroup) -> list[Estimate]:
    """Return every metric of a survival model."""
    return _estimates(None, (family.of_group(group) for family in families(SurvivalMetrics)))


def _estimates(structure: str | None, results: Iterable[Mapping[str, Interval]]) -> list[Estimate]:
    return [Estimate(name, structure, interval) for result in results for name, interval in result.items()]


def over_structures(patients: Patients) -> dict[tuple[str | None, str], Floats]:
    """Return the values by structure and metric, with each patient's mean over structures under None."""
    values = dict(patients.values)
    structures: Sequence[str] = sorted({structure for structure, _ in values if structure is not None})
    if len(structures) > 1:
        for name in sorted({metric for _, metric in values}):
            if metric_of(name).over_structures:
                table = np.stack([values[s, name] for s in structures if (s, name) in values])
                known = np.isfinite(table)
                total = np.where(known, table, 0.0).sum(axis=0)
                undefined = np.full(total.shape, np.nan)
                values[None, name] = np.divide(
                    total, known.sum(axis=0), out=undefined, where=known.any(axis=0)
                )
    return dict(sorted(values.items(), key=lambda item: (item[0][1], item[0][0] or "")))
