"""The contract of metrics: records that reports can rely on, and families that compute what they declare.

The families are those the folder holds, so a new file is tested without an edit here.
"""

from __future__ import annotations

import numpy as np
import pytest

from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.comparisons import compare
from medfed.evaluation.intervals import Resampling
from medfed.evaluation.metrics import (
    CaseMetrics,
    ClassGroup,
    ClassificationMetrics,
    Metric,
    MetricFamily,
    SegmentationMetrics,
    SurvivalGroup,
    SurvivalMetrics,
    families,
    family_of,
    headline_metrics,
    metric_of,
)
from medfed.evaluation.patients import SummarySettings, SurvivalPredictions
from medfed.evaluation.row_transport import rows_of, scalars_of
from medfed.evaluation.rows import CaseRow
from medfed.evaluation.segmentation import split_structures
from medfed.registry import kinds

FAMILIES = {name: kind() for name, kind in kinds("metrics").items()}
METRICS = [(name, metric) for name, family in FAMILIES.items() for metric in family.metrics]
SETTINGS = SummarySettings(round=1, seed=0, classes=("healthy", "disease"), min_patients=1, draws=20)


def names_of(family: MetricFamily, names) -> set[str]:
    """The declared metrics that these names hold; a name that none declares fails."""
    records = {name: family.describe(name) for name in names}
    assert all(records.values()), (
        f"{sorted(name for name, record in records.items() if not record)} undeclared"
    )
    return set(records)


@pytest.mark.parametrize(("family", "metric"), METRICS, ids=lambda value: getattr(value, "name", value))
def test_a_record_tells_a_report_what_it_needs(family: str, metric: Metric) -> None:
    assert metric.title
    assert not metric.title.endswith(".")
    assert metric.rank > 0
    if metric.lowest is not None and metric.highest is not None:
        assert metric.lowest < metric.highest
    if metric.better in ("higher", "lower"):
        assert metric.lowest is not None, "an interval is marked as wide by its share of the range"
    if metric.headline or metric.compared:
        assert metric.better != "none", "what is compared has a better direction"
    assert metric.matches(metric.name)


def test_names_and_ranks_are_unique() -> None:
    names = [metric.name for _, metric in METRICS]
    ranks = [metric.rank for _, metric in METRICS]
    assert len(set(names)) == len(names)
    assert len(set(ranks)) == len(ranks)
    for family, metric in METRICS:
        assert family_of(metric.name) is FAMILIES[family] or family_of(metric.name) == FAMILIES[family]


@pytest.mark.parametrize("family", families(SegmentationMetrics), ids=lambda family: type(family).__name__)
@pytest.mark.parametrize("inside", [(True, True), (True, False), (False, True), (False, False)])
def test_a_segmentation_family_measures_what_it_declares(family: SegmentationMetrics, inside) -> None:
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[1:4, 1:4, 2:5] = 1
    prediction, reference = (mask * taken for taken in inside)
    ((_, masks),) = split_structures(prediction, reference, (1.0, 1.0, 2.0), {1: "lesion"})
    values = family.measure(masks)
    names_of(family, values)
    assert all(value.value is not None or value.note for value in values.values())
    # Equal masks have the best value there is.
    if inside == (True, True):
        for name, (value, _) in values.items():
            best = {"higher": metric_of(name).highest, "lower": 0.0, "zero": 0.0}.get(metric_of(name).better)
            assert best is None or value == best


@pytest.mark.parametrize("family", families(ClassificationMetrics), ids=lambda family: type(family).__name__)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_classification_family_estimates_what_it_declares(
    family: ClassificationMetrics, classes: int
) -> None:
    generator = np.random.default_rng(classes)
    y = np.arange(60) % classes
    p = generator.dirichlet(np.ones(classes), 60) * 0.5 + np.eye(classes)[y] * 0.5
    group = ClassGroup.of(p, y, [f"class {number}" for number in range(classes)], Resampling(0, draws=20))
    found = {**family.of_class(group.single(1)), **(family.over_classes(group) if classes > 2 else {})}
    for name in names_of(family, found):
        interval, metric = found[name], metric_of(name)
        assert interval.value is not None or interval.note
        if interval.value is not None:
            assert metric.lowest is None or interval.value >= metric.lowest
            # A Brier score that is summed over classes reaches 2.
            assert metric.highest is None or interval.value <= metric.highest or name == "brier"
    same = family.difference(group, group, 1)
    if same is not None:
        assert metric_of(same.metric).compared
        assert same.interval.value == 0.0


@pytest.mark.parametrize("family", families(SurvivalMetrics), ids=lambda family: type(family).__name__)
def test_a_survival_family_estimates_what_it_declares(family: SurvivalMetrics) -> None:
    generator = np.random.default_rng(1)
    times, events, risks = (
        generator.exponential(5, 50),
        generator.random(50) < 0.7,
        generator.normal(0, 1, 50),
    )
    curves = {at: np.exp(-at / 5 * np.exp(risks)) for at in (1.0, 3.0)}
    group = SurvivalGroup(SurvivalPredictions(risks, times, events, curves), Resampling(0, draws=20))
    found = family.of_group(group)
    names_of(family, found)
    assert all(interval.value is not None or interval.note for interval in found.values())
    same = family.difference(group, group)
    if same is not None:
        assert metric_of(same.metric).compared
        assert same.interval.value == 0.0


class Contour(CaseMetrics, frozen=True, tag="contour_error"):
    """A metric of another package."""

    metrics = (
        Metric(
            "contour_error_mm", "Contour error", 50, "mm", "lower", highest=None, headline=True, compared=True
        ),
    )


@pytest.fixture
def outside(monkeypatch):
    """A family from an entry point of `medfed.metrics`, as if its package were installed."""
    known = {**kinds("metrics"), "contour_error": Contour}
    monkeypatch.setattr("medfed.evaluation.metrics.kinds", lambda folder: known)
    caches = (families, family_of, metric_of, headline_metrics)
    for cached in caches:
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


def test_a_metric_from_outside_is_summarised_compared_sent_and_reported(outside) -> None:
    cases = [
        CaseRow(
            model=model, site="north", split="test", case=f"c{i}", patient=f"p{i}", metric="contour_error_mm",
            value=value + i / 10,
        )
        for model, value in (("federated", 1.0), ("local:north", 2.0))
        for i in range(8)
    ]  # fmt: skip
    rows = [row for row in aggregate(cases, SETTINGS) if row.metric == "contour_error_mm"]
    assert {row.model: row.value for row in rows} == pytest.approx({"federated": 1.35, "local:north": 2.35})
    (difference,) = compare(cases, SETTINGS)
    assert (difference.value, difference.p) == (pytest.approx(-1.0), pytest.approx(2 / 2**8))
    assert headline_metrics()[0].name == "contour_error_mm"
    sent = rows_of(scalars_of(row for row in rows if row.model == "federated"), 1, "north")
    assert [(row.metric, row.value) for row in sent] == [("contour_error_mm", pytest.approx(1.35))]

    from medfed.evaluation.report import Run, render
    from medfed.evaluation.summarise import ResolvedStudy
    from medfed.runs.facts import RunFacts

    page = render(Run(RunFacts(sites=["north"]), ResolvedStudy({}), [*rows, difference], [], [], None))
    assert "Federated model: Contour error <b>1.35</b> mm" in page
    assert "Lower is better." in page


def test_a_metric_that_no_package_here_describes_is_summarised_by_its_mean() -> None:
    cases = [
        CaseRow(
            model="federated", site="north", split="test", case=str(i), patient=str(i), metric="glow", value=i
        )
        for i in range(5)
    ]
    (row,) = [row for row in aggregate(cases, SETTINGS) if row.metric == "glow"]
    assert (row.value, metric_of("glow").title, metric_of("glow").compared) == (2.0, "glow", False)
