"""Volumes in ml, their difference, and its limits of agreement (Bland and Altman, Lancet 1986)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from medfed.evaluation.intervals import Floats, Interval
from medfed.evaluation.metrics import CaseGroup, CaseValue, Estimate, Metric, SegmentationMetrics
from medfed.evaluation.segmentation import StructureMasks


class Volume(SegmentationMetrics, frozen=True, tag="volume"):
    """Volume of prediction and reference, and the first minus the second."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "volume_difference_ml",
            "Volume difference",
            200,
            "ml",
            "zero",
            None,
            None,
            "predicted - reference",
        ),
        Metric("volume_limit_low_ml", "Lower limit of agreement", 210, "ml", "none", None, None),
        Metric("volume_limit_high_ml", "Upper limit of agreement", 220, "ml", "none", None, None),
        Metric("volume_ml", "Volume, predicted", 230, "ml", "none", highest=None),
        Metric("reference_volume_ml", "Volume, reference", 240, "ml", "none", highest=None),
    )

    def measure(self, masks: StructureMasks) -> Mapping[str, CaseValue]:
        """Return both volumes and their difference."""
        voxel_ml = float(masks.spacing_mm.prod()) / 1000.0
        predicted, true = masks.voxels
        return {
            "volume_ml": CaseValue(predicted * voxel_ml),
            "reference_volume_ml": CaseValue(true * voxel_ml),
            "volume_difference_ml": CaseValue((predicted - true) * voxel_ml),
        }

    def over_patients(
        self, name: str, structure: str | None, values: Floats, group: CaseGroup
    ) -> list[Estimate]:
        """Return the mean over patients, and of the difference the limits of agreement too."""
        estimates = super().over_patients(name, structure, values, group)
        if name == "volume_difference_ml":
            estimates += _limits_of_agreement(structure, values[np.isfinite(values)])
        return estimates


def _limits_of_agreement(structure: str | None, differences: Floats) -> list[Estimate]:
    n = len(differences)
    if n < 3:
        return []
    # The standard error of a limit is about sqrt(3 / n) standard deviations.
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    half = 1.96 * deviation * np.sqrt(3 / n)
    limits = {"volume_limit_low_ml": mean - 1.96 * deviation, "volume_limit_high_ml": mean + 1.96 * deviation}
    method = "Bland and Altman, mean and 1.96 SD"
    return [
        Estimate(name, structure, Interval(limit, limit - half, limit + half, n, method))
        for name, limit in limits.items()
    ]
