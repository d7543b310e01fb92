"""Calibration: how predicted risks compare with what happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from medfed.evaluation.calibration import calibration
from medfed.evaluation.classification import ece_of
from medfed.evaluation.intervals import Interval
from medfed.evaluation.metrics import ClassGroup, ClassificationMetrics, FindingsGroup, Metric, OneClass


class Calibration(ClassificationMetrics, frozen=True, tag="calibration"):
    """Expected calibration error, and slope and intercept of the outcome on the predicted log odds."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "ece", "Calibration error", 410, better="lower", description="expected, ten bins of equal width"
        ),
        Metric(
            "calibration_slope",
            "Calibration slope",
            420,
            "",
            "one",
            None,
            None,
            "1 is right, below is overconfident",
        ),
        # Fitted on validation patients (Guo et al., ICML 2017); `temperature_scaled` gives each model's.
        Metric(
            "temperature", "Temperature", 460, "", "one", None, None, "above 1 the model was overconfident"
        ),
        Metric("calibration_intercept", "Calibration intercept", 430, "", "zero", None, None, "0 is right"),
    )

    def of_class(self, group: OneClass) -> Mapping[str, Interval]:
        """Return the calibration of one class's probability."""
        ece = group.interval(ece_of(group.p, group.y))
        slope, intercept = calibration(group.p, group.y) if len(group.p) else (ece, ece)
        return {"ece": ece, "calibration_slope": slope, "calibration_intercept": intercept}

    def over_classes(self, group: ClassGroup) -> Mapping[str, Interval]:
        """Return the calibration error of the called class's probability."""
        return {"ece": group.interval(ece_of(group.p.max(axis=1), group.p.argmax(axis=1) == group.y))}

    def over_findings(self, group: FindingsGroup) -> Mapping[str, Interval]:
        """Return the mean over findings of the calibration error."""
        return {"ece": group.macro(lambda one: ece_of(one.p, one.y))}
