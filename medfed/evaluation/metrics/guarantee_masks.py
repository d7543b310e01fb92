"""Thresholds at which a structure is found in a stated share of patients, and whether that held."""

from __future__ import annotations

from typing import ClassVar

from medfed.evaluation.metrics import Metric, SegmentationMetrics

ON_VALIDATION = "threshold chosen on validation patients"
ON_TEST = "share of test patients at the hospital's own guaranteed threshold"


class GuaranteeMasks(SegmentationMetrics, frozen=True, tag="guarantee_masks"):
    """Records of the rows that `guarantees` makes of segmentations."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("guarantee_found", "Threshold: it is found", 600, better="none", description=ON_VALIDATION),
        Metric("guarantee_covered", "Threshold: 90 % of it", 610, better="none", description=ON_VALIDATION),
        Metric("held_found", "Found at its threshold", 620, description=ON_TEST),
        Metric("held_covered", "90 % of it at its threshold", 630, description=ON_TEST),
    )
