"""How many patients have a structure that is missed, invented or absent in both masks."""

from __future__ import annotations

from typing import ClassVar, Literal

from medfed.evaluation.intervals import Interval
from medfed.evaluation.metrics import CaseGroup, Estimate, Metric, SegmentationMetrics
from medfed.evaluation.segmentation import ABSENT, FALSE_POSITIVE, MISSED

# Each count's title, rank, which values are better, and the note that is counted.
COUNTS: dict[str, tuple[str, int, Literal["lower", "none"], str]] = {
    "missed": ("Structures missed", 150, "lower", MISSED),
    "invented": ("Structures invented", 160, "lower", FALSE_POSITIVE),
    "absent": ("Structures absent in both", 170, "none", ABSENT),
}


class Absence(SegmentationMetrics, frozen=True, tag="absence"):
    """Counts of patients in any of whose images a structure is missed, invented or absent in both."""

    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        Metric(name, title, rank, "", better, highest=None, description="count", count=True)
        for name, (title, rank, better, _) in COUNTS.items()
    )

    def over_group(self, group: CaseGroup) -> list[Estimate]:
        """Return the counts of each structure that has a Dice."""
        patients, notes = len(group.patients.patients), group.patients.notes
        structures = sorted(name for name, metric in notes if metric == "dice" and name is not None)
        return [
            Estimate(name, structure, Interval(float(number), None, None, patients, ""))
            for structure in structures
            for name, (*_, note) in COUNTS.items()
            for number in [sum(note in some for some in notes[structure, "dice"])]
        ]
