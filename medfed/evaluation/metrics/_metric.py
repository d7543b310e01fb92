"""The contract of a metric: its record, and the kind of this folder that computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from numpy import bool_
from numpy.typing import NDArray

from medfed.evaluation.intervals import Interval, Statistic
from medfed.registry import Kind

Mask = NDArray[bool_]


@dataclass(frozen=True)
class Metric:
    """What reports and comparisons need to know of one metric.

    `name` is that of its rows; one that ends in "_" or "@" is followed by a parameter, as in "brier@12".
    `better` says which values are better ("zero" and "one": the nearer, the better), `lowest` and `highest`
    are the range. `rank` orders the table of measures. The first metric by rank that is a `headline` and that
    a run has is the report's subject. `compared` metrics are compared between models.

    `over_structures` metrics are also averaged over structures within each patient; sums of counts or volumes
    of different organs would mean nothing. `absence` says what a missed or invented structure gives: an
    overlap of 0, or no distance. `by_outcome` metrics say something about the patients of one outcome, so
    they are suppressed where an outcome has too few patients. A `count` of patients is shown as "3 of 16". A
    metric that is not `comparable` depends on a hospital's own data (such as the times it is evaluated at),
    so it is not sent.
    """

    name: str
    title: str
    rank: int
    unit: str = ""
    better: Literal["higher", "lower", "zero", "one", "none"] = "higher"
    lowest: float | None = 0.0
    highest: float | None = 1.0
    description: str = ""
    headline: bool = False
    compared: bool = False
    over_structures: bool = False
    absence: Literal["zero", "no value"] | None = None
    by_outcome: bool = True
    count: bool = False
    comparable: bool = True

    def matches(self, name: str) -> bool:
        """Return whether rows of this name hold the metric."""
        return name == self.name or (self.name[-1] in "_@" and name.startswith(self.name))


class CaseValue(NamedTuple):
    """A metric of one case; a missing value has its reason in `note`."""

    value: float | None
    note: str | None = None


class Estimate(NamedTuple):
    """A metric of a group of patients; `structure` is None if it is of all structures or classes."""

    metric: str
    structure: str | None
    interval: Interval


class Difference(NamedTuple):
    """A metric of one model minus another's on the same patients, with the p value of a test,
    if there is one.
    """

    metric: str
    structure: str | None
    interval: Interval
    p: float | None
    test: str


class SubgroupStatistic(NamedTuple):
    """The metric that subgroups are compared by.

    `build` makes its statistic from a mask of patients. `outcomes` are the patients of each outcome, and a
    subgroup with too few patients with `outcome` is suppressed.
    """

    metric: str
    structure: str | None
    build: Callable[[Mask], Statistic]
    outcomes: tuple[Mask, ...] = ()
    outcome: str = "or without the class"


class MetricFamily(Kind, frozen=True):
    """Metrics that are computed together; subclass one of the bases of this package, which say from what.

    A family without a file here is added through the entry point group `medfed.metrics`.
    """

    folder: ClassVar[str] = "metrics"
    # What a task's batches hold (`Task.needs`), of the tasks that are measured by this family.
    serves: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]]

    def describe(self, name: str) -> Metric | None:
        """Return the record of the family's metric of this name, or None if the family has none."""
        return next((metric for metric in self.metrics if metric.matches(name)), None)
