"""Metrics that are measured on each case; reported is their mean over patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from medfed.evaluation.intervals import Floats, Interval, Resampling, mean_of
from medfed.evaluation.metrics._metric import CaseValue, Estimate, MetricFamily
from medfed.evaluation.patients import Patients
from medfed.evaluation.segmentation import ABSENT, FALSE_POSITIVE, MISSED, StructureMasks


class CaseGroup(NamedTuple):
    """One model's patients at one place, and how they are resampled."""

    patients: Patients
    resampling: Resampling


class CaseMetrics(MetricFamily, frozen=True):
    """Metrics measured on each case; a group's value is the mean over its patients."""

    def over_patients(
        self, name: str, structure: str | None, values: Floats, group: CaseGroup
    ) -> list[Estimate]:
        """Return a group's estimates from one value per patient, NaN where a patient has none."""
        metric = self.describe(name)
        no_value = metric is not None and metric.absence == "no value"
        return [
            mean_over_patients(name, structure, values, group, "left out" if no_value else "counted as 0")
        ]

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
    name: str, structure: str | None, values: Floats, group: CaseGroup, counted: str = "counted as 0"
) -> Estimate:
    """Return the mean of the patients who have a value; its note says how many structures were absent."""
    notes = group.patients.notes.get((structure, name), [[] for _ in values])
    known = np.isfinite(values)
    absences = _absences(notes, counted)
    if not known.any():
        reasons = [*absences, *(note for some in notes for note in some), "no patient has a value"]
        return Estimate(name, structure, Interval(None, None, None, 0, "", reasons[0]))
    interval = group.resampling.within(known).interval(mean_of(values[known]), int(known.sum()))
    note = "; ".join(part for part in (interval.note, *absences) if part)
    return Estimate(name, structure, interval._replace(note=note or None))


def _absences(notes: Sequence[Sequence[str]], counted: str) -> list[str]:
    every = [note for some in notes for note in some]
    missed, invented = every.count(MISSED), every.count(FALSE_POSITIVE)
    parts = [f"{missed} missed and {invented} invented {counted}"] if missed or invented else []
    if absent := every.count(ABSENT):
        parts.append(f"{absent} absent in both left out")
    return parts
