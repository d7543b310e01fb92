"""Distances in mm between the surfaces of a structure's masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from medfed.evaluation.intervals import Floats, Interval, quantile_of
from medfed.evaluation.metrics import CaseGroup, CaseValue, Estimate, Metric, SegmentationMetrics
from medfed.evaluation.segmentation import (
    FALSE_POSITIVE,
    MISSED,
    StructureMasks,
    hausdorff_of,
    mean_distance_of,
)


class SurfaceDistance(SegmentationMetrics, frozen=True, tag="surface_distance"):
    """95th percentile and mean of the distances between both surfaces.

    A missed or invented structure has no distance: the mean over patients leaves it out, and the median
    counts it as infinite.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "hd95_mm",
            "HD95",
            120,
            "mm",
            "lower",
            0.0,
            None,
            "larger of both directed 95th percentiles",
            compared=True,
            over_structures=True,
            absence="no value",
        ),
        Metric("hd95_median_mm", "HD95, median", 130, "mm", "lower", 0.0, None, "missed, invented: infinite"),
        Metric(
            "msd_mm",
            "Mean surface distance",
            140,
            "mm",
            "lower",
            0.0,
            None,
            "over both surfaces",
            over_structures=True,
            absence="no value",
        ),
    )

    def measure(self, masks: StructureMasks) -> Mapping[str, CaseValue]:
        """Return both distances; None where one of the masks is empty."""
        if masks.absence is not None:
            return dict.fromkeys(("hd95_mm", "msd_mm"), CaseValue(None, masks.absence))
        return {
            "hd95_mm": CaseValue(hausdorff_of(masks.surfaces, 0.95, masks.form)),
            "msd_mm": CaseValue(mean_distance_of(masks.surfaces)),
        }

    def over_patients(
        self, name: str, structure: str | None, values: Floats, group: CaseGroup
    ) -> list[Estimate]:
        """Return the mean over patients, and of a structure's HD95 the median too."""
        estimates = super().over_patients(name, structure, values, group)
        if name == "hd95_mm" and structure is not None and np.isfinite(values).any():
            median = _median(values.copy(), group.patients.notes[structure, name], group)
            estimates.append(Estimate("hd95_median_mm", structure, median))
        return estimates


def _median(values: Floats, notes: list[list[str]], group: CaseGroup) -> Interval:
    for patient, some in enumerate(notes):
        if MISSED in some or FALSE_POSITIVE in some:
            values[patient] = np.inf
    known = ~np.isnan(values)
    patients, infinite = int(known.sum()), int(np.isinf(values).sum())
    statistic = quantile_of(values[known], 0.5)
    if not np.isfinite(statistic(np.ones((1, patients)))[0]):
        note = f"{infinite} of {patients} missed or invented: the median is infinite"
        return Interval(None, None, None, patients, "", note)
    # BCa's jackknife says little about a median; the percentile interval is the usual choice.
    interval = group.resampling.within(known).interval(statistic, patients, kind="percentile")
    return interval.with_note(f"{infinite} missed or invented counted as infinite" if infinite else None)
