"""Points of plots that are groups of patients, never one: what a swarm and a Bland-Altman plot may show.

Patients are ranked by their value and cut into groups of at least `smallest_group` (here k); a point is a
group's mean. Groups tell no more of few patients than the rows do, beside each other:

- They are of a hospital whose own mean is shown, so no hospital follows by subtraction.
- A structure that is missed has an overlap of 0, and how many are missed is shown, so only the others are in
  groups. A group with two missed patients among three would give the third one's value.
- For the sizes, missed and invented structures are left out, and must be none or k: their own sizes follow
  from the means over all patients.
- Means have two significant digits: who is in a subgroup by an attribute and in a group here is unknown, and
  more digits could tell.

Probabilities have no such groups: ranked patients and the bins of `histograms` would differ by few of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from medfed.errors import DECODING_ERRORS, RunError
from medfed.evaluation.disclosure import is_too_few
from medfed.evaluation.intervals import Floats
from medfed.evaluation.patients import OVERLAP, RISK, Patients, SummarySettings, by_patient, is_open
from medfed.evaluation.rows import FEDERATED, CaseRow, Row, unperturbed


class GroupPoint(msgspec.Struct, frozen=True, array_like=True):
    """A group of `n` patients: the mean of their values, and of the sizes that these are differences of."""

    n: int
    value: float
    size: float | None = None


class PatientGroups(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The groups of one hospital's test patients by one metric of the federated model.

    `outcome` is "event" or "censored" of a risk. `left_out` counts patients in no group (`why`).
    """

    round: int
    site: str
    metric: str
    points: tuple[GroupPoint, ...]
    structure: str | None = None
    outcome: str = ""
    left_out: int = 0
    why: str = ""


def patient_groups(
    cases: Iterable[CaseRow], rows: Iterable[Row], settings: SummarySettings
) -> list[PatientGroups]:
    """Return the groups of each hospital whose mean is among `rows`, by structure and metric."""
    tested = [case for case in unperturbed(cases) if (case.model, case.split) == (FEDERATED, "test")]
    shown = {
        (row.site, row.metric, row.structure)
        for row in rows
        if (row.model, row.split, row.group, row.against) == (FEDERATED, "test", None, None)
        and row.value is not None
    }
    found: list[PatientGroups] = []
    for site in sorted({case.site for case in tested}):
        patients = by_patient([case for case in tested if case.site == site])
        for structure, metric in sorted(patients.values, key=str):
            values = patients.values[structure, metric]
            if metric == OVERLAP and (site, metric, structure) in shown:
                found += _overlaps(site, structure, is_open(patients, structure, values), values, settings)
            elif "_difference_" in metric and all(
                (site, name, structure) in shown for name in (metric, *_sizes(metric))
            ):
                found += _differences(site, structure, metric, patients, settings)
            elif metric == RISK and (site, "c_index", None) in shown:
                found += _risks(site, patients, values, settings)
    return found


def _sizes(metric: str) -> tuple[str, str]:
    predicted = metric.replace("_difference_", "_")
    return predicted, f"reference_{predicted}"


def _overlaps(
    site: str, structure: str | None, ranked: np.ndarray, values: Floats, settings: SummarySettings
) -> list[PatientGroups]:
    missed = int((np.isfinite(values) & ~ranked).sum())
    points = _points(values[ranked], values[ranked], None, settings.min_patients)
    if not points:
        return []
    return [PatientGroups(settings.round, site, OVERLAP, points, structure, "", missed, "missed, Dice 0")]


def _differences(
    site: str, structure: str | None, metric: str, patients: Patients, settings: SummarySettings
) -> list[PatientGroups]:
    """Return the groups by mean size; none where few patients have one of the sizes alone."""
    predicted, reference = (patients.values[structure, name] for name in _sizes(metric))
    counted = np.isfinite(predicted) & np.isfinite(reference)
    both = counted & (predicted > 0) & (reference > 0)
    alone = [int((counted & (one > 0) & ~both).sum()) for one in (predicted, reference)]
    if any(is_too_few(number, settings.min_patients) for number in alone):
        return []
    sizes = (predicted + reference) / 2
    points = _points(sizes[both], (predicted - reference)[both], sizes[both], settings.min_patients)
    if not points:
        return []
    return [
        PatientGroups(settings.round, site, metric, points, structure, "", sum(alone), "missed or invented")
    ]


def _risks(site: str, patients: Patients, values: Floats, settings: SummarySettings) -> list[PatientGroups]:
    """Return the groups by log risk, apart for those with an event and without, where both are enough."""
    events = next(some for (_, metric), some in patients.events.items() if metric == RISK)
    parts = {"event": values[events], "censored": values[~events]}
    if any(is_too_few(len(some), settings.min_patients) for some in parts.values()):
        return []
    made = {name: _points(some, some, None, settings.min_patients) for name, some in parts.items()}
    return [
        PatientGroups(settings.round, site, RISK, points, None, name)
        for name, points in made.items()
        if points
    ]


def _points(rank: Floats, values: Floats, sizes: Floats | None, min_patients: int) -> tuple[GroupPoint, ...]:
    """Return the means of ranked groups of at least `min_patients`, as equal in number as can be."""
    number = len(values) // max(min_patients, 1)
    if number == 0:
        return ()
    groups: Sequence[np.ndarray] = np.array_split(np.argsort(rank, kind="stable"), number)
    return tuple(
        GroupPoint(len(group), _mean(values[group]), None if sizes is None else _mean(sizes[group]))
        for group in groups
    )


def _mean(values: Floats) -> float:
    return float(f"{values.mean():.2g}")


def read(path: Path) -> list[PatientGroups]:
    """Return the groups in a file of JSON lines.

    Raises:
        RunError: a line holds none.
    """
    try:
        return [msgspec.json.decode(line, type=PatientGroups) for line in path.read_bytes().splitlines()]
    except DECODING_ERRORS as error:
        raise RunError(f"{path.name}: not a file of groups: {error}; restore the file") from error
