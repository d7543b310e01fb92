"""Volumes in ml, their difference, and its limits of agreement (Bland and Altman, Lancet 1986).

Of planes, areas in mm², or in pixels for pictures without a size in mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from medfed.evaluation.intervals import Floats, Interval
from medfed.evaluation.metrics import CaseGroup, CaseValue, Estimate, Metric, SegmentationMetrics
from medfed.evaluation.segmentation import StructureMasks

# Limits of agreement of fewer patients say more of the single patients than of the method.
MIN_FOR_LIMITS = 10


def _sizes(what: str, unit: str, rank: int) -> tuple[Metric, ...]:
    """Return the metrics of a size: `what` is volume or area; the names' unit is the title's without "²"."""
    title, suffix = what.capitalize(), unit.replace("²", "2")
    limits = {"low": "Lower limit of agreement", "high": "Upper limit of agreement"}
    return (
        Metric(
            f"{what}_difference_{suffix}",
            f"{title} difference",
            rank,
            unit,
            "zero",
            None,
            None,
            "predicted - reference",
        ),
        Metric(f"{what}_limit_low_{suffix}", limits["low"], rank + 10, unit, "none", None, None),
        Metric(f"{what}_limit_high_{suffix}", limits["high"], rank + 20, unit, "none", None, None),
        Metric(f"{what}_{suffix}", f"{title}, predicted", rank + 30, unit, "none", highest=None),
        Metric(f"reference_{what}_{suffix}", f"{title}, reference", rank + 40, unit, "none", highest=None),
    )


class Volume(SegmentationMetrics, frozen=True, tag="volume"):
    """Volume of prediction and reference, and the first minus the second; of a plane's masks, the area."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        *_sizes("volume", "ml", 200),
        *_sizes("area", "mm²", 202),
        *_sizes("area", "px", 204),
    )

    def measure(self, masks: StructureMasks) -> Mapping[str, CaseValue]:
        """Return both volumes and their difference."""
        voxel = float(masks.spacing_mm.prod())
        what, unit = "area", "px" if masks.unit == "px" else "mm2"
        if masks.prediction.ndim == 3:
            what, unit, voxel = "volume", "ml", voxel / 1000.0
        predicted, true = masks.voxels
        return {
            f"{what}_{unit}": CaseValue(predicted * voxel),
            f"reference_{what}_{unit}": CaseValue(true * voxel),
            f"{what}_difference_{unit}": CaseValue((predicted - true) * voxel),
        }

    def over_patients(
        self, name: str, structure: str | None, values: Floats, group: CaseGroup
    ) -> list[Estimate]:
        """Return the mean over patients, and of the difference the limits of agreement too."""
        estimates = super().over_patients(name, structure, values, group)
        if "_difference_" in name:
            known = values[np.isfinite(values)]
            if len(known) >= max(MIN_FOR_LIMITS, group.min_patients):
                estimates += _limits_of_agreement(name, structure, known)
        return estimates


def _limits_of_agreement(difference: str, structure: str | None, differences: Floats) -> list[Estimate]:
    n = len(differences)
    # The standard error of a limit is about sqrt(3 / n) standard deviations.
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    half = 1.96 * deviation * np.sqrt(3 / n)
    low, high = (difference.replace("_difference_", f"_limit_{side}_") for side in ("low", "high"))
    limits = {low: mean - 1.96 * deviation, high: mean + 1.96 * deviation}
    method = "Bland and Altman, mean and 1.96 SD"
    return [
        Estimate(name, structure, Interval(limit, limit - half, limit + half, n, method))
        for name, limit in limits.items()
    ]
