"""Lesions that are found and lesions that are invented, as 26-connected components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from medfed.evaluation.metrics import CaseValue, Metric, SegmentationMetrics
from medfed.evaluation.segmentation import StructureMasks, count_lesions


class Lesions(SegmentationMetrics, frozen=True, tag="lesions"):
    """Share of lesions that a predicted voxel touches, and number of predicted lesions that touch none."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("lesion_sensitivity", "Lesions found", 180, description="share of a patient's lesions"),
        Metric("false_positives", "False positive lesions per case", 190, better="lower", highest=None),
    )

    def measure(self, masks: StructureMasks) -> Mapping[str, CaseValue]:
        """Return the sensitivity (None without a lesion) and the number of false positives."""
        lesions, detected, invented = count_lesions(masks.prediction, masks.reference)
        sensitivity = (
            CaseValue(detected / lesions) if lesions else CaseValue(None, "no lesion in the reference")
        )
        return {"lesion_sensitivity": sensitivity, "false_positives": CaseValue(float(invented))}
