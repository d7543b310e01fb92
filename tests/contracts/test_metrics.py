"""Every metric family of the registry keeps the contract of medfed.testing; one from outside is reported."""

from __future__ import annotations

import pytest
from contract import checks_of, run

from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.comparisons import compare
from medfed.evaluation.metrics import (
    CaseMetrics,
    Metric,
    families,
    family_of,
    headline_metrics,
    metric_of,
)
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.report import Run, render
from medfed.evaluation.row_transport import accept_rows, scalars_of
from medfed.evaluation.rows import CaseRow
from medfed.evaluation.summarise import PublicStudy
from medfed.registry import kinds
from medfed.runs.facts import RunFacts
from medfed.testing import check_metric_family

SETTINGS = SummarySettings(round=1, seed=0, classes=("healthy", "disease"), min_patients=1, draws=20)
FAMILIES = kinds("metrics")


@checks_of(check_metric_family)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    run(check_metric_family, check, FAMILIES[name]())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_each_metric_is_found_in_its_family(name: str) -> None:
    for metric in FAMILIES[name].metrics:  # type: ignore[attr-defined]
        assert type(family_of(metric.name)) is FAMILIES[name]


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
    scalars = scalars_of(row for row in rows if row.model == "federated")
    sent, refused = accept_rows(scalars, 1, "north", 1000, None)
    assert refused == []
    assert [(row.metric, row.value) for row in sent] == [("contour_error_mm", pytest.approx(1.35))]

    page = render(Run(RunFacts(sites=["north"]), PublicStudy({}), [*rows, difference], [], [], None))
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
