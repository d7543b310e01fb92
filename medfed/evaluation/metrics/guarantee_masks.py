"""Thresholds at which a structure is found in a stated share of patients, and whether that held."""

from __future__ import annotations

from typing import ClassVar

from medfed.evaluation.metrics import Metric, SegmentationMetrics

ON_VALIDATION = "threshold chosen on validation patients"
ON_TEST = "share of test patients at the hospital's guaranteed threshold"
FAILING = "share of validation patients in whom it fails at a threshold, at most"


def chosen(kind: str, title: str, rank: int) -> Metric:
    """Return the record of a threshold; it follows from a curve that leaves, and does not leave itself."""
    name = f"guarantee_{kind}"
    return Metric(name, title, rank, better="none", description=ON_VALIDATION, comparable=False)


def curve(kind: str, title: str, rank: int) -> Metric:
    """Return the record of the points of a risk curve, whose names end in a threshold."""
    return Metric(f"risk_{kind}@", title, rank, better="lower", description=FAILING)


class GuaranteeMasks(SegmentationMetrics, frozen=True, tag="guarantee_masks"):
    """Records of the rows that `guarantees` makes of segmentations."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        chosen("found", "Threshold: it is found", 600),
        chosen("covered", "Threshold: 90 % of it", 610),
        chosen("voxels", "Threshold: voxels of it", 615),
        Metric("held_found", "Found at its threshold", 620, description=ON_TEST),
        Metric("held_covered", "90 % of it at its threshold", 630, description=ON_TEST),
        Metric("held_voxels", "Voxels found at its threshold", 635, description="mean over test patients"),
        curve("found", "It is not found", 680),
        curve("covered", "90 % of it are not found", 681),
        curve("voxels", "Share of its voxels missed", 682),
    )
