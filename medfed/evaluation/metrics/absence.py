"""How many patients have a structure missed, invented or absent in both masks, and the specificity."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from medfed.evaluation.classification import proportion
from medfed.evaluation.intervals import Floats, Interval
from medfed.evaluation.metrics import CaseGroup, Estimate, Metric, SegmentationMetrics
from medfed.evaluation.patients import OVERLAP, RIGHTLY_EMPTY
from medfed.evaluation.segmentation import ABSENT, FALSE_POSITIVE, MISSED

# Each count's title, rank, which values are better, and the note that is counted.
COUNTS: dict[str, tuple[str, int, Literal["lower", "none"], str]] = {
    "missed": ("Structures missed", 150, "lower", MISSED),
    "invented": ("Structures invented", 160, "lower", FALSE_POSITIVE),
    "absent": ("Structures absent in both", 170, "none", ABSENT),
}


class Absence(SegmentationMetrics, frozen=True, tag="absence"):
    """Counts of patients in any of whose images a structure is missed, invented or absent in both.

    The specificity is over patients without the structure, in whom there is no overlap to measure.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            RIGHTLY_EMPTY,
            "Rightly left empty",
            145,
            description="specificity: patients without the structure in whom none is predicted",
            headline=True,
            compared=True,
        ),
        *(
            Metric(name, title, rank, "", better, highest=None, description="count", count=True)
            for name, (title, rank, better, _) in COUNTS.items()
        ),
    )

    def over_patients(
        self, name: str, structure: str | None, values: Floats, group: CaseGroup
    ) -> list[Estimate]:
        """Return the specificity with Wilson's interval, where each patient has one image."""
        known = values[np.isfinite(values)]
        if name != RIGHTLY_EMPTY or not np.isin(known, (0.0, 1.0)).all():
            return super().over_patients(name, structure, values, group)
        interval = proportion(int(known.sum()), len(known), "Wilson", "every patient has the structure")
        return [Estimate(name, structure, interval)]

    def over_group(self, group: CaseGroup) -> list[Estimate]:
        """Return the counts of each structure that has a Dice."""
        patients, notes = len(group.patients.patients), group.patients.notes
        structures = sorted(name for name, metric in notes if metric == OVERLAP and name is not None)
        return [
            Estimate(name, structure, Interval(float(number), None, None, patients, ""))
            for structure in structures
            for name, (*_, note) in COUNTS.items()
            for number in [sum(note in some for some in notes[structure, OVERLAP])]
        ]
