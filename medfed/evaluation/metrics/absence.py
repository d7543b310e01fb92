"""How many patients have a structure that is missed, invented or absent in both masks."""

from __future__ import annotations

from typing import ClassVar

from medfed.evaluation.intervals import Interval
from medfed.evaluation.metrics import CaseGroup, Estimate, Metric, SegmentationMetrics
from medfed.evaluation.segmentation import ABSENT, FALSE_POSITIVE, MISSED

NOTES = {"missed": MISSED, "invented": FALSE_POSITIVE, "absent": ABSENT}


class Absence(SegmentationMetrics, frozen=True, tag="absence"):
    """Counts of patients in any of whose images a structure is missed, invented or absent in both."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "missed", "Structures missed", 150, better="lower", highest=None, description="count", count=True
        ),
        Metric(
            "invented",
            "Structures invented",
            160,
            better="lower",
            highest=None,
            description="count",
            count=True,
        ),
        Metric(
            "absent",
            "Structures absent in both",
            170,
            better="none",
            highest=None,
            description="count",
            count=True,
        ),
    )

    def over_group(self, group: CaseGroup) -> list[Estimate]:
        """Return the counts of each structure that has a Dice."""
        patients, notes = len(group.patients.patients), group.patients.notes
        structures = sorted(name for name, metric in notes if metric == "dice" and name is not None)
        return [
            Estimate(name, structure, Interval(float(number), None, None, patients, ""))
            for structure in structures
            for name, note in NOTES.items()
            for number in [sum(note in some for some in notes[structure, "dice"])]
        ]
