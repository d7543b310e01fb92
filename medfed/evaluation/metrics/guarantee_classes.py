"""Thresholds of a class's probability that keep a stated sensitivity or coverage of sets, and if it held."""

from __future__ import annotations

from typing import ClassVar

from medfed.evaluation.metrics import ClassificationMetrics, Metric
from medfed.evaluation.metrics.guarantee_masks import ON_TEST, ON_VALIDATION


class GuaranteeClasses(ClassificationMetrics, frozen=True, tag="guarantee_classes"):
    """Records of the rows that `guarantees` makes of class probabilities."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "guarantee_sensitivity", "Threshold: sensitivity", 640, better="none", description=ON_VALIDATION
        ),
        Metric("guarantee_set", "Threshold: set of classes", 650, better="none", description=ON_VALIDATION),
        Metric("held_sensitivity", "Sensitivity at its threshold", 660, description=ON_TEST),
        Metric("held_set", "Sets with the true class", 670, description=ON_TEST),
    )
