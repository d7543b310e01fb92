"""The metrics: one family per module, whose records say how reports label, order and compare them.

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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfed.errors import DataError
from medfed.evaluation import classification, segmentation
from medfed.evaluation.intervals import Floats, Interval, Resampling, Statistic, mean_of
from medfed.evaluation.patients import FindingPredictions, Patients, SurvivalPredictions
from medfed.evaluation.segmentation import ABSENT, FALSE_POSITIVE, MISSED, StructureMasks
from medfed.registry import Kind, cached_by_kinds, kinds

Mask = NDArray[np.bool_]

# The rank of a metric that no family describes, such as one of a plug-in that is not installed here.
UNKNOWN_RANK = 10_000


@dataclass(frozen=True)
class Metric:
    """What reports and comparisons need to know of one metric.

    `name` is that of its rows; one that ends in "_" or "@" is followed by a parameter, as in "brier@12".
    `better` says which values are better ("zero" and "one": the nearer, the better), `lowest` and `highest`
    are the range. `rank` orders the table of measures. The first metric by rank that is a `headline` and that
    a run has is the report's subject. `compared` metrics are compared between models.

    `over_structures` metrics are also averaged over structures within each patient; sums of counts or volumes
    of different organs would mean nothing. `absence` says what a missed structure gives: an overlap of 0, or
    no distance. `by_outcome` metrics say something about the patients of one outcome, so they are suppressed
    where an outcome has too few patients. A `count` of patients is shown as "3 of 16". A metric that is not
    `comparable` depends on a hospital's own data (such as the times it is evaluated at), so it is not sent.
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
    """A metric of one model minus another's on the same patients, with a test's p value or None."""

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


class CaseGroup(NamedTuple):
    """One model's patients at one place, how they are resampled, and the fewest that a value may be over."""

    patients: Patients
    resampling: Resampling
    min_patients: int = 1


class CaseMetrics(MetricFamily, frozen=True):
    """Metrics measured on each case; a group's value is the mean over its patients."""

    def over_patients(
        self, name: str, structure: str | None, values: Floats, group: CaseGroup
    ) -> list[Estimate]:
        """Return a group's estimates from one value per patient, NaN where a patient has none."""
        metric = self.describe(name)
        no_value = metric is not None and metric.absence == "no value"
        return [mean_over_patients(name, structure, values, group, missed_counted=not no_value)]

    def over_group(self, group: CaseGroup) -> list[Estimate]:
        """Return what is not computed from single values, such as counts of notes."""
        return []


class SegmentationMetrics(CaseMetrics, frozen=True):
    """Metrics of one structure's predicted and reference masks."""

    serves: ClassVar[tuple[str, ...]] = ("segment",)

    def measure(self, masks: StructureMasks) -> Mapping[str, CaseValue]:
        """Return one structure's values in one case, by metric."""
        return {}


class CasePrediction(NamedTuple):
    """One case of a task whose predictions medfed does not know.

    `outputs` is what the module's `predict_step` returned and `batch` what it was given, both without the
    batch axis.
    """

    outputs: Mapping[str, Any]
    batch: Mapping[str, Any]


class PredictionMetrics(CaseMetrics, frozen=True):
    """Metrics of one case's prediction, for a task that names this family in its `metrics`."""

    def measure(self, case: CasePrediction) -> Mapping[str, CaseValue]:
        """Return one case's values by metric."""
        raise NotImplementedError


def mean_over_patients(
    name: str, structure: str | None, values: Floats, group: CaseGroup, missed_counted: bool = True
) -> Estimate:
    """Return the mean of the patients who have a value; its note says how many structures were absent."""
    notes = group.patients.notes.get((structure, name), [[] for _ in values])
    known = np.isfinite(values)
    absences = _absences(notes, missed_counted)
    if not known.any():
        reasons = [*absences, *(note for some in notes for note in some), "no patient has a value"]
        return Estimate(name, structure, Interval(None, None, None, 0, "", reasons[0]))
    interval = group.resampling.within(known).interval(mean_of(values[known]), int(known.sum()))
    return Estimate(name, structure, interval.with_note("; ".join(absences)))


def _absences(notes: Sequence[Sequence[str]], missed_counted: bool) -> list[str]:
    every = [note for some in notes for note in some]
    missed, invented, absent = (every.count(note) for note in (MISSED, FALSE_POSITIVE, ABSENT))
    parts = [f"{missed} missed {'counted as 0' if missed_counted else 'left out'}"] if missed else []
    if invented or absent:
        parts.append(f"{invented + absent} without the structure left out ({invented} of them invented)")
    return parts


class OperatingPoints(NamedTuple):
    """One threshold per class, and how they were chosen ("Youden index on 40 validation patients").

    The thresholds of the classes `unfixed` are 0.5, as no validation patient is with or without these.
    """

    thresholds: Sequence[float]
    source: str
    unfixed: frozenset[int] = frozenset()


UNFIXED = "not fixed on validation patients"


def unfixed_points(classes: int) -> OperatingPoints:
    """Return thresholds of 0.5, for a model that was not run on validation patients."""
    return OperatingPoints([0.5] * classes, UNFIXED)


class OneClass(NamedTuple):
    """A group's patients for one class against the others; `y` is true where a patient is of the class."""

    p: Floats
    y: Mask
    threshold: float
    source: str
    resampling: Resampling

    def interval(self, statistic: Statistic, undefined: str | None = None) -> Interval:
        """Return a statistic with its bootstrap interval; `undefined` says why it may have no value."""
        return self.resampling.interval(statistic, len(self.p), undefined=undefined)


class ClassGroup(NamedTuple):
    """A group's patients: (patients, classes) probabilities, class numbers and class names."""

    p: Floats
    y: NDArray[np.intp]
    names: Sequence[str]
    points: OperatingPoints
    resampling: Resampling

    @classmethod
    def of(
        cls,
        probabilities: ArrayLike,
        targets: ArrayLike,
        names: Sequence[str],
        resampling: Resampling,
        points: OperatingPoints | None = None,
    ) -> ClassGroup:
        """Return the group of these patients.

        Raises:
            DataError: if probabilities and targets do not fit the classes, or probabilities don't sum to one.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        y = classification.class_numbers(targets, len(names))
        if p.shape != (len(y), len(names)):
            raise DataError(f"probabilities have shape {p.shape}, expected {(len(y), len(names))}")
        if len(p) and not np.abs(p.sum(axis=1) - 1).max() < 1e-3:
            raise DataError(
                "probabilities of a patient do not sum to one; apply softmax before the evaluation"
            )
        chance = unfixed_points(len(names))
        return cls(p, y, names, points or chance, resampling)

    @property
    def binary(self) -> bool:
        """Whether there are two classes, of which the second is the positive one."""
        return len(self.names) == 2

    def single(self, number: int) -> OneClass:
        """Return the patients for one class against the others."""
        threshold = self.points.thresholds[number]
        return OneClass(self.p[:, number], self.y == number, threshold, self.points.source, self.resampling)

    def interval(self, statistic: Statistic) -> Interval:
        """Return a statistic with its bootstrap interval."""
        return self.resampling.interval(statistic, len(self.p), undefined="a class without patients")

    def outcomes(self) -> list[int]:
        """Return how many patients each class has."""
        return [int(count) for count in np.bincount(self.y, minlength=len(self.names))]


class FindingsGroup(NamedTuple):
    """A group's patients for several findings: (patients, findings) probabilities, presence, and labelling.

    A finding with fewer than `min_patients` patients with or without it is in no mean over findings.
    """

    predictions: FindingPredictions
    names: Sequence[str]
    points: OperatingPoints
    resampling: Resampling
    min_patients: int = 1

    def single(self, number: int) -> OneClass:
        """Return the patients in whom one finding was labelled."""
        (p, y, known), points = self.predictions, self.points
        labelled = known[:, number]
        source = UNFIXED if number in points.unfixed else points.source
        threshold, resampling = points.thresholds[number], self.resampling.within(labelled)
        return OneClass(p[labelled, number], y[labelled, number], threshold, source, resampling)

    def outcomes(self, number: int) -> tuple[int, int]:
        """Return how many patients are with one finding, and how many without."""
        with_finding = self.predictions.y[:, number] & self.predictions.known[:, number]
        return int(with_finding.sum()), int((self.predictions.known[:, number] & ~with_finding).sum())

    def averaged(self) -> list[int]:
        """Return the numbers of the findings with enough patients with and without them."""
        least = max(self.min_patients, 1)
        return [number for number in range(len(self.names)) if min(self.outcomes(number)) >= least]

    def mean_over(self, build: Callable[[OneClass], Statistic]) -> Statistic | None:
        """Return the mean of a statistic over the findings with enough patients; None if there are none."""
        known = self.predictions.known
        parts = [_of_labelled(build(self.single(number)), known[:, number]) for number in self.averaged()]
        return macro(parts) if parts else None

    def macro(self, build: Callable[[OneClass], Statistic]) -> Interval:
        """Return the mean of a statistic over findings, with its interval and how many findings it is of."""
        patients, statistic, of = len(self.predictions.p), self.mean_over(build), len(self.averaged())
        few = f"fewer than {max(self.min_patients, 1)} patients with or without"
        if statistic is None:
            return Interval(None, None, None, patients, "", f"{few} each finding")
        interval = self.resampling.interval(statistic, patients)
        note = f"mean of {of} of {len(self.names)} findings; the others have {few} them"
        return interval.with_note(note if of < len(self.names) else None)

    def mean_by_patient(self, each: Floats) -> Floats:
        """Return each patient's mean of (patients, findings) values over the labelled findings, or NaN."""
        known = self.predictions.known
        undefined = np.full(len(known), np.nan)
        total = np.where(known, each, 0.0).sum(axis=1)
        return np.asarray(np.divide(total, known.sum(axis=1), out=undefined, where=known.any(axis=1)))


def _of_labelled(statistic: Statistic, labelled: Mask) -> Statistic:
    """Return a statistic of the labelled patients as one of all patients."""
    return lambda counts: statistic(counts[:, labelled])


class ClassificationMetrics(MetricFamily, frozen=True):
    """Metrics of each patient's class probabilities."""

    serves: ClassVar[tuple[str, ...]] = ("classify", "multilabel", "table")

    def of_class(self, group: OneClass) -> Mapping[str, Interval]:
        """Return the metrics of one class against the others; of two classes, of the second one."""
        return {}

    def over_classes(self, group: ClassGroup) -> Mapping[str, Interval]:
        """Return the metrics of three or more classes together."""
        return {}

    def over_findings(self, group: FindingsGroup) -> Mapping[str, Interval]:
        """Return the metrics of several findings together; those of each finding come from `of_class`."""
        return {}

    def difference(self, first: ClassGroup, second: ClassGroup, min_patients: int) -> Difference | None:
        """Return the first model's metric minus the second's on the same patients, or None without one."""
        return None

    def findings_differences(self, first: FindingsGroup, second: FindingsGroup) -> list[Difference]:
        """Return the differences of several findings, together and each, on the same patients."""
        return []

    def findings_subgroup(self, group: FindingsGroup) -> SubgroupStatistic | None:
        """Return the metric by which subgroups are compared for several findings, if this family has it."""
        return None

    def subgroup(self, group: ClassGroup) -> SubgroupStatistic | None:
        """Return the metric that subgroups are compared by, if this family has it."""
        return None


def macro(parts: Sequence[Statistic]) -> Statistic:
    """Return the mean of one statistic per class, in which every class counts alike, however rare.

    A resample without a class is left undefined, rather than averaged over fewer classes.
    """
    return lambda counts: np.mean([part(counts) for part in parts], axis=0)


class SurvivalGroup(NamedTuple):
    """A group's patients, their resampling, and how many patients an outcome needs to be shown."""

    patients: SurvivalPredictions
    resampling: Resampling
    min_patients: int = 0


class SurvivalMetrics(MetricFamily, frozen=True):
    """Metrics of predicted risks against times that may be censored."""

    serves: ClassVar[tuple[str, ...]] = ("survival",)

    def of_group(self, group: SurvivalGroup) -> Mapping[str, Interval]:
        """Return the metrics of a group of patients."""
        return {}

    def difference(self, first: SurvivalGroup, second: SurvivalGroup) -> Difference | None:
        """Return the first model's metric minus the second's on the same patients, or None without one."""
        return None

    def subgroup(self, group: SurvivalGroup) -> SubgroupStatistic | None:
        """Return the metric that subgroups are compared by, if this family has it."""
        return None


Family = TypeVar("Family", bound=MetricFamily)


@cached_by_kinds
def families(base: type[Family]) -> tuple[Family, ...]:
    """Return the families that are of a base, the best-ranked first."""
    built = [kind() for kind in kinds("metrics").values() if issubclass(kind, base)]
    return tuple(sorted(built, key=lambda family: min(metric.rank for metric in family.metrics)))


@cached_by_kinds
def family_of(name: str) -> MetricFamily | None:
    """Return the family that computes a metric, or None if none is known."""
    every = families(MetricFamily)
    exact = (family for family in every for metric in family.metrics if metric.name == name)
    return next(exact, None) or next((family for family in every if family.describe(name)), None)


@cached_by_kinds
def metric_of(name: str) -> Metric:
    """Return the record of the metric of this name; an unknown metric has its name as the title."""
    family = family_of(name)
    known = family.describe(name) if family is not None else None
    return known or Metric(
        name, name.replace("_", " "), UNKNOWN_RANK, better="none", lowest=None, highest=None
    )


@cached_by_kinds
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
    unit: segmentation.Unit = "mm",
) -> list[Measured]:
    """Return every metric of every structure of one case; the arguments are `split_structures`'s.

    Raises:
        LabelError: if the masks, the spacing or the tolerance are invalid.
    """
    split = segmentation.split_structures(
        prediction, reference, spacing_mm, structures, tolerance_mm, form, unit
    )
    return [
        Measured(name, metric, value, note)
        for name, masks in split
        for family in families(SegmentationMetrics)
        for metric, (value, note) in family.measure(masks).items()
    ]
