"""Dice overlap of a structure's masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from medfed.evaluation.metrics import CaseValue, Metric, SegmentationMetrics
from medfed.evaluation.segmentation import ABSENT, StructureMasks, dice


class Dice(SegmentationMetrics, frozen=True, tag="dice"):
    """Overlap of prediction and reference."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "dice",
            "Dice",
            100,
            description="overlap of prediction and reference, 0 to 1",
            headline=True,
            compared=True,
            over_structures=True,
            absence="zero",
        ),
    )

    def measure(self, masks: StructureMasks) -> Mapping[str, CaseValue]:
        """Return the Dice; None where the structure is in neither mask."""
        if masks.absence is not None:
            return {"dice": CaseValue(None if masks.absence == ABSENT else 0.0, masks.absence)}
        return {"dice": CaseValue(dice(masks.prediction, masks.reference))}
