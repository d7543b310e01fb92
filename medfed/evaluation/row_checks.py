"""What the hub accepts of the results that a site reports: rows that an honest site could have measured.

A row is refused if its metric is unknown here or none that the study's task is measured by, if its structure
is none of the study's, if its value is outside the metric's range, if its number of patients is none that the
site may have, if its interval contradicts itself, or if its texts are not of a row's form. A refused row is
named with the site, the metric and why; the report is made of the others.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medfed.evaluation.metrics import (
    ClassificationMetrics,
    Metric,
    MetricFamily,
    SegmentationMetrics,
    SurvivalMetrics,
    family_of,
)
from medfed.evaluation.rows import FEDERATED, UNTRAINED, Row
from medfed.evaluation.segmentation import TOLERANCE_MM, UNITS, surface_dice_name
from medfed.registry import kind_of
from medfed.wire.untrusted_text import for_log

if TYPE_CHECKING:
    from medfed.models.tasks import Task

# The models whose results a hospital sends; results of its own local model stay in the hospital.
MODELS = (FEDERATED, UNTRAINED)
SPLITS = ("val", "test")

# The longest name of a structure and of a group ("sex=F"); `federation/egress.py` has the same at the site.
MAX_STRUCTURE, MAX_GROUP = 80, 120

# How many numbers that no honest site sends are named.
MAX_NAMED = 5

# How far beyond a metric's range a value may be by rounding.
ROUNDING = 1e-6

# The largest value of a metric without a limit of its own, such as a distance in mm or an area in pixels: no
# hospital measures more, and means, squares and sums of such values are numbers still.
MAX_VALUE = 1e12

# A site that trains may have this many times its training cases as patients of one split, and this many in
# any case. Honest sites test on fewer; one that states a million to make the headline is refused.
PATIENTS_PER_EXAMPLE, ALWAYS_PLAUSIBLE = 10, 1000

# How many patients a split has is a row of its own, which no family measures.
PATIENTS = "patients"
_PATIENTS = Metric(PATIENTS, "Patients", 0, highest=None, count=True)

# The families of metrics by what a task's batches hold; each family's base says which.
_BASES = (SegmentationMetrics, ClassificationMetrics, SurvivalMetrics)

_METRIC = re.compile(r"[a-z0-9_@.]{1,60}")
_GROUP = re.compile(r"[^=]{1,60}=.{1,100}")


@dataclass(frozen=True)
class StudyMeasures:
    """What every site of a study measures: all else that a site reports is not a result of this study.

    `task` and `needs` are the task's kind and what its batches hold, `families` the families of metrics that
    it names instead of those of its needs. `structures` are its classes that a result may be of; None if its
    own families name them. `tolerance_mm` is that of the surface Dice.
    """

    task: str
    needs: str
    families: tuple[str, ...] = ()
    structures: frozenset[str] | None = None
    tolerance_mm: float = TOLERANCE_MM

    def row_error(self, row: Row) -> str | None:
        """Return why no site of the study can have measured a row of a known metric, or None."""
        family = family_of(row.metric)
        if row.metric != PATIENTS and (family is None or not self._is_measured_by(family)):
            return f"this study does not measure it: its task is '{self.task}'"
        if row.metric.startswith("nsd_") and row.metric not in self._surface_dice:
            return f"this study's surface Dice is {' or '.join(self._surface_dice)} (evaluation.tolerance_mm)"
        if row.structure is not None and self.structures is not None and row.structure not in self.structures:
            return "its structure is none of the study's classes (task.classes)"
        return None

    def _is_measured_by(self, family: MetricFamily) -> bool:
        if self.families:
            return kind_of(family) in self.families
        return any(isinstance(family, base) and self.needs in base.serves for base in _BASES)

    @property
    def _surface_dice(self) -> tuple[str, ...]:
        return tuple(surface_dice_name("voxel", self.tolerance_mm, unit) for unit in UNITS)


def measures_of(task: type[Task], classes: Iterable[str], tolerance_mm: float) -> StudyMeasures:
    """Return what sites measure in a study of this task and these classes."""
    named = None if task.metrics else _structures(task.needs, tuple(classes))
    return StudyMeasures(
        str(task.__struct_config__.tag), task.needs, tuple(task.metrics), named, tolerance_mm
    )


def _structures(needs: str, classes: tuple[str, ...]) -> frozenset[str]:
    """Return the classes that a result may be of: no background, and of two classes the second is meant."""
    if needs == "segment":
        return frozenset(classes[1:])
    return frozenset(classes if needs == "multilabel" or len(classes) > 2 else ())


def plausible_patients(bound: int | None, examples: int | None) -> int:
    """Return the most patients that a site may have in one split.

    `bound` is the study's limit (sampling.max_examples), `examples` the number of training cases with which
    the site began, None if it trains nothing or its number is hidden.
    """
    most = sys.maxsize if bound is None else bound
    return most if not examples else min(most, max(ALWAYS_PLAUSIBLE, PATIENTS_PER_EXAMPLE * examples))


def plausible_scores(
    scalars: Mapping[str, float], declared: Collection[str]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return a round's numbers that are `declared` and within their metric's range, and notes on the others.

    `declared` are the names that the study lets leave a hospital; an honest site sends no others.
    """
    foreign = sorted(name for name in scalars if name not in declared)
    known = {name: value for name, value in scalars.items() if name in declared}
    errors = {name: why for name, value in known.items() if (why := _score_error(name, value))}
    notes = [f"a score is left out: {for_log(name, 80)}: {why}" for name, why in sorted(errors.items())]
    if foreign:
        shown = ", ".join(for_log(name, 80) for name in foreign[:MAX_NAMED])
        more = f" and {len(foreign) - MAX_NAMED} more" if len(foreign) > MAX_NAMED else ""
        notes.append(f"numbers that the study does not declare are left out: {shown}{more}")
    return {name: value for name, value in known.items() if name not in errors}, tuple(notes)


def _score_error(name: str, value: float) -> str | None:
    metric = known_metric(name.rpartition("/")[2]) if name.startswith("val/") else None
    return _range_error(value, metric) if metric is not None else None


def row_error(row: Row, max_patients: int, measures: StudyMeasures | None) -> str | None:
    """Return why a row that a site reports cannot be believed, or None.

    `measures` says what the study measures; None if that is not known here, which accepts any known metric.
    """
    if row.split not in SPLITS or row.model not in MODELS or row.against is not None:
        return "a site reports the federated and the untrained model, on its val and test patients"
    if len(row.structure or "") > MAX_STRUCTURE or len(row.group or "") > MAX_GROUP:
        return f"its structure has more than {MAX_STRUCTURE} characters, or its group more than {MAX_GROUP}"
    if row.group is not None and not _GROUP.fullmatch(row.group):
        return "its group is not of the form attribute=value"
    metric = known_metric(row.metric)
    if metric is None:
        return "no metric of this name is known; what a site measures must be installed at the hub, too"
    if not metric.comparable:
        return "this metric depends on a hospital's own data, and is not compared"
    foreign = None if measures is None else measures.row_error(row)
    return foreign or _value_error(row, metric) or _patients_error(row, max_patients)


def known_metric(name: str) -> Metric | None:
    """Return the record of a metric that some family computes under exactly this name, or None."""
    if name == PATIENTS:
        return _PATIENTS
    if not _METRIC.fullmatch(name) or ("@" in name and not _is_number(name.partition("@")[2])):
        return None
    try:
        family = family_of(name)
        metric = family.describe(name) if family is not None else None
    except (ValueError, LookupError):  # a family that takes its name apart, and finds other parts
        return None
    # A name that ends so is the beginning of one ("nsd_", "brier@").
    return None if metric is None or name[-1] in "_@" else metric


def _value_error(row: Row, metric: Metric) -> str | None:
    """Return what is wrong with a row's value and interval, or None."""
    if row.value is None:
        return "it has no value"
    if (row.low is None) != (row.high is None):
        return "it has one end of an interval"
    if row.low is not None and row.high is not None and row.low > row.high:
        return f"its interval runs from {row.low:.4g} to {row.high:.4g}"
    if metric.count and (row.value != int(row.value) or (row.n is not None and row.value > row.n)):
        return f"it counts {row.value:.4g} patients among {row.n}"
    errors = (_range_error(value, metric) for value in (row.value, row.low, row.high) if value is not None)
    return next((error for error in errors if error), None)


def _range_error(value: float, metric: Metric) -> str | None:
    lowest = -MAX_VALUE if metric.lowest is None else metric.lowest - ROUNDING
    highest = MAX_VALUE if metric.highest is None else metric.highest + ROUNDING
    return None if lowest <= value <= highest else f"{value:.4g} is outside the metric's range"


def _patients_error(row: Row, max_patients: int) -> str | None:
    if row.n is None:
        return "it does not say of how many patients it is"
    if not 1 <= row.n <= max_patients:
        return f"it is of {row.n:.12g} patients, this site may have 1 to {max_patients} in a split"
    if row.metric == PATIENTS and row.value != row.n:
        return f"it counts {row.value:.4g} patients among {row.n}"
    return None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
