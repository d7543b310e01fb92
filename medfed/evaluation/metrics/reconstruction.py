"""How well hidden blocks of an image are reconstructed, for pretraining without labels."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import ClassVar

from medfed.evaluation.metrics import CasePrediction, CaseValue, Metric, PredictionMetrics

FLAT = "an image without contrast"


class ReconstructionError(PredictionMetrics, frozen=True, tag="reconstruction"):
    """Absolute error over an image's hidden voxels, relative to guessing the mean of the visible ones."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "reconstruction_error",
            "Reconstruction error",
            800,
            better="lower",
            highest=None,
            description="of hidden blocks of images; 1 is that of guessing the mean of what is visible, 0 is "
            "perfect",
            headline=True,
            compared=True,
            by_outcome=False,
        ),
    )

    def measure(self, case: CasePrediction) -> Mapping[str, CaseValue]:
        """Return the error that the task's module computed; None of an image without contrast."""
        error = float(case.outputs["reconstruction_error"])
        value = CaseValue(error) if isfinite(error) else CaseValue(None, FLAT)
        return {"reconstruction_error": value}
