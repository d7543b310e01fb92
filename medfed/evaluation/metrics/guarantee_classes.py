"""Thresholds of a class's probability that keep a stated sensitivity or coverage of sets, and if it held."""

from __future__ import annotations

from typing import ClassVar

from medfed.evaluation.metrics import ClassificationMetrics, Metric
from medfed.evaluation.metrics.guarantee_masks import ON_TEST, chosen, curve


class GuaranteeClasses(ClassificationMetrics, frozen=True, tag="guarantee_classes"):
    """Records of the rows that `guarantees` makes of class probabilities."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        chosen("sensitivity", "Threshold: sensitivity", 640),
        chosen("set", "Threshold: set of classes", 650),
        Metric("held_sensitivity", "Sensitivity at its threshold", 660, description=ON_TEST),
        Metric("held_set", "Sets with the true class", 670, description=ON_TEST),
        curve("sensitivity", "Not called", 690),
        curve("set", "True class not in the set", 691),
    )
