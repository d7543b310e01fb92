"""Surface Dice at a tolerance (Nikolov et al. 2021, arXiv:1809.04430)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from medfed.evaluation.metrics import CaseValue, Metric, SegmentationMetrics
from medfed.evaluation.segmentation import ABSENT, StructureMasks, surface_dice_name, surface_dice_of


class SurfaceDice(SegmentationMetrics, frozen=True, tag="surface_dice"):
    """Share of both surfaces within a tolerance of each other, named by form and tolerance: nsd_voxel_2mm."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("nsd_", "Surface Dice", 110, compared=True, over_structures=True, absence="zero"),
    )

    def describe(self, name: str) -> Metric | None:
        """Return the metric with its tolerance in the title.

        Raises:
            ValueError: if the name begins with nsd_ but has no form and tolerance.
        """
        metric = super().describe(name)
        if metric is None or name == metric.name:
            return metric
        _, form, tolerance = name.split("_")
        return replace(
            metric,
            title=f"Surface Dice at {tolerance[:-2]} {tolerance[-2:]}",
            description=f"share of both surfaces within the tolerance, {form} form",
        )

    def measure(self, masks: StructureMasks) -> Mapping[str, CaseValue]:
        """Return the surface Dice at the study's tolerance; None where the structure is in neither mask."""
        name = surface_dice_name(masks.form, masks.tolerance_mm, masks.unit)
        if masks.absence is not None:
            return {name: CaseValue(None if masks.absence == ABSENT else 0.0, masks.absence)}
        return {name: CaseValue(surface_dice_of(masks.surfaces, masks.tolerance_mm))}
