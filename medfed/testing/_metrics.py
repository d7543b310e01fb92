"""The contract of a metric family: records that a report can rely on, and values that they declare."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import product
from math import isfinite
from typing import Any

import numpy as np

from medfed.evaluation.intervals import Interval, Resampling
from medfed.evaluation.metrics import (
    ClassGroup,
    ClassificationMetrics,
    Difference,
    FindingsGroup,
    Metric,
    MetricFamily,
    SegmentationMetrics,
    SurvivalGroup,
    SurvivalMetrics,
    families,
    unfixed_points,
)
from medfed.evaluation.patients import FindingPredictions, SurvivalPredictions
from medfed.evaluation.segmentation import split_structures
from medfed.testing._contract import OF_EVERY_KIND, Contract, NotApplicable

check_metric_family: Contract[MetricFamily] = Contract("metric family", OF_EVERY_KIND)

RESAMPLING = Resampling(0, draws=20)


def declared(family: MetricFamily, name: str) -> Metric:
    metric = family.describe(name)
    assert metric is not None, f"'{name}' is computed, but `metrics` declares {_names(family.metrics)}"
    return metric


def _names(metrics: Iterable[Metric]) -> list[str]:
    return [metric.name for metric in metrics]


@check_metric_family.check
def its_records_tell_a_report_what_it_needs(family: MetricFamily) -> None:
    assert family.metrics
    for metric in family.metrics:
        assert metric.title, metric.name
        assert not metric.title.endswith("."), metric.name
        assert metric.rank > 0, metric.name
        if metric.lowest is not None and metric.highest is not None:
            assert metric.lowest < metric.highest, metric.name
        if metric.better in ("higher", "lower"):
            assert metric.lowest is not None, (
                f"{metric.name}: an interval's width is a share of the range, which begins at `lowest`"
            )
        if metric.headline or metric.compared:
            assert metric.better != "none", f"{metric.name}: what is compared needs a better direction"


@check_metric_family.check
def its_names_and_ranks_are_its_own(family: MetricFamily) -> None:
    others = [other for other in families(MetricFamily) if type(other) is not type(family)]
    metrics = [*family.metrics, *(metric for other in others for metric in other.metrics)]
    both: tuple[list[Any], list[Any]] = (_names(metrics), [metric.rank for metric in metrics])
    for values in both:
        own = values[: len(family.metrics)]
        taken = [value for value in own if values.count(value) > 1]
        assert not taken, f"{taken} of another metric"
    for metric in family.metrics:
        assert family.describe(metric.name) is metric, f"another of its metrics matches '{metric.name}'"


@check_metric_family.check
def of_masks_it_measures_what_it_declares(family: MetricFamily) -> None:
    if not isinstance(family, SegmentationMetrics):
        raise NotApplicable("it does not measure masks")
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[1:4, 1:4, 2:5] = 1
    for predicted, present in product((True, False), repeat=2):
        structures = split_structures(mask * predicted, mask * present, (1.0, 1.0, 2.0), {1: "lesion"})
        ((_, masks),) = structures
        for name, (value, note) in family.measure(masks).items():
            metric = declared(family, name)
            assert note if value is None else isfinite(value), f"'{name}' is {value}, with the note {note!r}"
            if predicted and present:  # equal masks have the best value there is
                best = {"higher": metric.highest, "lower": 0.0, "zero": 0.0}.get(metric.better)
                assert best is None or value == best, f"'{name}' of equal masks: {value}"


@check_metric_family.check
def of_class_probabilities_it_estimates_what_it_declares(family: MetricFamily) -> None:
    if not isinstance(family, ClassificationMetrics):
        raise NotApplicable("it does not measure class probabilities")
    for classes in (2, 3):
        y = np.arange(60) % classes
        p = np.random.default_rng(classes).dirichlet(np.ones(classes), 60) * 0.5 + np.eye(classes)[y] * 0.5
        group = ClassGroup.of(p, y, [f"class {number}" for number in range(classes)], RESAMPLING)
        over_classes = family.over_classes(group) if classes > 2 else {}
        # A Brier score that is summed over classes reaches 2.
        check_estimates(family, {**family.of_class(group.single(1)), **over_classes}, beyond=("brier",))
        check_difference(family, family.difference(group, group, 1))


@check_metric_family.check
def of_several_findings_it_estimates_what_it_declares(family: MetricFamily) -> None:
    if not isinstance(family, ClassificationMetrics):
        raise NotApplicable("it does not measure class probabilities")
    generator = np.random.default_rng(2)
    y, known = generator.random((60, 3)) < (0.5, 0.3, 0.0), generator.random((60, 3)) < 0.8
    predictions = FindingPredictions(generator.random((60, 3)) * 0.5 + y * 0.5, y, known)
    group = FindingsGroup(predictions, ("first", "second", "absent"), unfixed_points(3), RESAMPLING)
    check_estimates(family, family.over_findings(group))
    for number in range(3):
        check_estimates(family, family.of_class(group.single(number)))
    for difference in family.findings_differences(group, group):
        check_difference(family, difference)


@check_metric_family.check
def of_survival_it_estimates_what_it_declares(family: MetricFamily) -> None:
    if not isinstance(family, SurvivalMetrics):
        raise NotApplicable("it does not measure survival")
    generator = np.random.default_rng(1)
    times, events = generator.exponential(5, 50), generator.random(50) < 0.7
    risks = generator.normal(0, 1, 50)
    curves = {at: np.exp(-at / 5 * np.exp(risks)) for at in (1.0, 3.0)}
    group = SurvivalGroup(SurvivalPredictions(risks, times, events, curves), RESAMPLING)
    check_estimates(family, family.of_group(group))
    check_difference(family, family.difference(group, group))


def check_estimates(
    family: MetricFamily, estimates: Mapping[str, Interval], beyond: Collection[str] = ()
) -> None:
    """Check values against the declared range, whose upper end the metrics `beyond` may exceed."""
    for name, interval in estimates.items():
        metric, value = declared(family, name), interval.value
        assert value is not None or interval.note, f"'{name}' has neither a value nor a note"
        if value is not None:
            assert metric.lowest is None or value >= metric.lowest, f"'{name}' is {value}"
            assert metric.highest is None or value <= metric.highest or name in beyond, f"'{name}' is {value}"


def check_difference(family: MetricFamily, same: Difference | None) -> None:
    """Check the difference of a model to itself."""
    if same is not None:
        assert declared(family, same.metric).compared, f"'{same.metric}' is not declared as compared"
        assert same.interval.value == 0.0
