"""The temperature at which a classifier's probabilities were rescaled (Guo et al., ICML 2017)."""

from __future__ import annotations

from typing import ClassVar

from medfed.evaluation.metrics import ClassificationMetrics, Metric


class Temperature(ClassificationMetrics, frozen=True, tag="temperature"):
    """Temperature fitted on validation patients, which `temperature_scaling` reports for each model."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "temperature", "Temperature", 460, "", "one", None, None, "above 1 the model was overconfident"
        ),
    )
