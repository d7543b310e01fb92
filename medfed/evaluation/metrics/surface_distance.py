"""Distances between the surfaces of a structure's masks, in mm, or in pixels for pictures without a size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from medfed.evaluation.disclosure import is_too_few
from medfed.evaluation.intervals import Floats, Interval, central_mean_of
from medfed.evaluation.metrics import CaseGroup, CaseValue, Estimate, Metric, SegmentationMetrics
from medfed.evaluation.segmentation import (
    FALSE_POSITIVE,
    MISSED,
    StructureMasks,
    Unit,
    hausdorff_of,
    mean_distance_of,
)


def _distances(unit: Unit, after: int) -> tuple[Metric, ...]:
    """Return the metrics in a unit; those in pixels come after those in mm."""
    return (
        Metric(
            f"hd95_{unit}",
            "HD95",
            120 + after,
            unit,
            "lower",
            0.0,
            None,
            "larger of both directed 95th percentiles",
            compared=True,
            over_structures=True,
            absence="no value",
        ),
        Metric(
            f"hd95_median_{unit}",
            "HD95, median",
            130 + after,
            unit,
            "lower",
            0.0,
            None,
            "missed, invented: infinite",
        ),
        Metric(
            f"msd_{unit}",
            "Mean surface distance",
            140 + after,
            unit,
            "lower",
            0.0,
            None,
            "over both surfaces",
            over_structures=True,
            absence="no value",
        ),
    )


class SurfaceDistance(SegmentationMetrics, frozen=True, tag="surface_distance"):
    """95th percentile and mean of the distances between both surfaces.

    A missed or invented structure has no distance: the mean over patients leaves it out, and the median
    counts it as infinite.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (*_distances("mm", 0), *_distances("px", 1))

    def measure(self, masks: StructureMasks) -> Mapping[str, CaseValue]:
        """Return both distances; None where one of the masks is empty."""
        hd95, msd = f"hd95_{masks.unit}", f"msd_{masks.unit}"
        if masks.absence is not None:
            return dict.fromkeys((hd95, msd), CaseValue(None, masks.absence))
        return {
            hd95: CaseValue(hausdorff_of(masks.surfaces, 0.95, masks.form)),
            msd: CaseValue(mean_distance_of(masks.surfaces)),
        }

    def over_patients(
        self, name: str, structure: str | None, values: Floats, group: CaseGroup
    ) -> list[Estimate]:
        """Return the mean over patients, and of a structure's HD95 the median too."""
        estimates = super().over_patients(name, structure, values, group)
        if name.startswith("hd95_") and structure is not None and np.isfinite(values).any():
            median = _median(values.copy(), group.patients.notes[structure, name], group)
            estimates.append(Estimate(name.replace("hd95_", "hd95_median_"), structure, median))
        return estimates


def _median(values: Floats, notes: list[list[str]], group: CaseGroup) -> Interval:
    for patient, some in enumerate(notes):
        if MISSED in some or FALSE_POSITIVE in some:
            values[patient] = np.inf
    known = ~np.isnan(values)
    patients, infinite = int(known.sum()), int(np.isinf(values).sum())
    # A median is one patient's value, or two's: the mean of the middle few is nobody's.
    middle = min(group.min_patients, patients)
    statistic = central_mean_of(values[known], group.min_patients)
    if not np.isfinite(statistic(np.ones((1, patients)))[0]):
        note = f"{infinite} of {patients} missed or invented: the median is infinite"
        return Interval(None, None, None, patients, "", note)
    # Where the two at the edges count half, they are outside too: beside the mean their sum would follow.
    outside = patients - infinite - (middle - (patients - middle) % 2)
    if is_too_few(outside, group.min_patients):
        note = (
            f"beside the mean it gives that of fewer than {group.min_patients} patients, outside the middle"
        )
        return Interval(None, None, None, patients, "", note)
    # BCa's jackknife says little about a median; the percentile interval is the usual choice.
    interval = group.resampling.within(known).interval(statistic, patients, kind="percentile")
    interval = interval.with_note(f"mean of the {middle} middle patients" if middle > 1 else None)
    return interval.with_note(f"{infinite} missed or invented counted as infinite" if infinite else None)
