"""What describes one hospital's training cases: counts and sums, of which the small ones stay there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data import histogram
from medfed.data.case import Case
from medfed.data.datamodule import SiteDataModule
from medfed.data.describe.scope import (
    AGE_BINS,
    AXES,
    GEOMETRY,
    LENGTH_BINS,
    SCANNERS,
    SEXES,
    VOLUME_BINS,
    Scope,
    age_bin,
    first_intensity_bin,
    intensity_bins,
    scanner_group,
    sex_group,
    volume_bin,
)
from medfed.data.describe.suppress import bins_of, countable, with_small_withheld
from medfed.data.fingerprint import Fingerprint, fingerprint, geometry_bins
from medfed.data.harmonise import FIXED_POINT
from medfed.data.settings import Images, Table
from medfed.data.volume import Volume
from medfed.errors import TooFewPatientsError

# The oldest age that is taken as one; another word or number is missing.
MAX_AGE_YEARS = 130

# Ages are summed in tenths of years.
AGE_STEPS = 10


def gather(
    data: SiteDataModule, scope: Scope, least: int, *, each_once: bool = False
) -> dict[str, list[int]]:
    """Return the numbers that describe a hospital's training cases, for `blocks_of(scope)`.

    Counts of fewer than `least` patients are withheld, and those from which they would follow. A hospital
    with fewer training patients answers with zeros, so that nobody waits for it. With `each_once`, spacing,
    size and extent are those of each patient's first case.

    Raises:
        ImageError, LabelError: for a case that is refused, by its token.
    """
    cases = sorted(data.cases("train"), key=lambda case: case.token)
    first: dict[str, Case] = {}
    for case in cases:
        first.setdefault(case.patient, case)
    if len(first) < max(least, 1):
        return {"hospitals": [1, 0]}
    values = {"hospitals": [1, 1], "patients": [len(first)], "cases": [len(cases)]}
    values |= _people(first, least) | _answers(first, data, scope, least)
    if scope.images is not None:
        values |= _of_images(data, scope, scope.images, least, each_once)
    if scope.table is not None:
        values |= _of_columns(_rows_of(data, cases), scope.table, least)
    return values


# ------------------------------------------------------------------------------------------------ patients


def _people(first: Mapping[str, Case], least: int) -> dict[str, list[int]]:
    """Return what there is of age, sex and scanner; `first` is each patient's first case."""
    ages = {patient: _age(case) for patient, case in first.items()}
    known = {patient: age is not None for patient, age in ages.items()}
    counted = {patient: int(ages[patient] or 0) for patient in countable(known, least)}
    tenths = [round((ages[patient] or 0.0) * AGE_STEPS) for patient in counted]
    sexes = [sex_group(case.attributes.get("sex", "")) for case in first.values()]
    scanners = [scanner_group(case.attributes.get("scanner", "")) for case in first.values()]
    return {
        "age": bins_of({patient: age_bin(age) for patient, age in counted.items()}, AGE_BINS, least),
        "age.known": _known(known.values(), least),
        "age.counted": [len(counted)],
        "age.sums": [sum(tenths), sum(one * one for one in tenths)],
        "sex": _groups(sexes, len(SEXES) + 1, least),
        "scanner": _groups(scanners, len(SCANNERS) + 1, least),
    }


def _age(case: Case) -> float | None:
    try:
        age = float(case.attributes.get("age", ""))
    except ValueError:
        return None
    return age if 0 <= age <= MAX_AGE_YEARS else None


def _groups(numbers: Sequence[int], groups: int, least: int) -> list[int]:
    """Return how many patients are in each group, small ones withheld and counted at the end."""
    return with_small_withheld([numbers.count(group) for group in range(groups)], least)


def _known(known: Any, least: int) -> list[int]:
    """Return how many patients have a value, how many have none, and how many are withheld."""
    return _groups([0 if one else 1 for one in known], 2, least)


def _answers(
    first: Mapping[str, Case], data: SiteDataModule, scope: Scope, least: int
) -> dict[str, list[int]]:
    """Return how many patients are of each class, or had the event."""
    if scope.targets:
        missing = len(scope.targets)
        targets = [missing if case.target is None else case.target for case in first.values()]
        return {"target": _groups(targets, missing + 1, least)}
    if scope.needs != "survival":
        return {}
    happened = {
        case.token: int(row[1]) for case, row in zip(data.rows.index.cases, data.rows.targets, strict=True)
    }
    return {"event": _groups([happened[case.token] for case in first.values()], 3, least)}


# ------------------------------------------------------------------------------------------------ images


@dataclass
class _Structures:
    """The volume of each structure in each patient's first case, in ml; 0 where it is absent."""

    names: tuple[str, ...]
    volumes: dict[str, tuple[float, ...]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    def add(self, case: Case, image: Volume, label: Volume | None) -> None:
        if label is None or case.patient in self.volumes:
            return
        self.tokens[case.patient] = case.token
        counts = np.bincount(label.array[0].reshape(-1), minlength=len(self.names) + 1)
        millilitres = float(np.prod(image.spacing_mm)) / 1000
        self.volumes[case.patient] = tuple(float(n) * millilitres for n in counts[1 : len(self.names) + 1])

    def values(self, least: int) -> dict[str, list[int]]:
        """Return the patients with and without each structure, and the histogram of its volumes."""
        result: dict[str, list[int]] = {}
        for number, _ in enumerate(self.names):
            patients = sorted(self.volumes, key=lambda patient: self.tokens[patient])
            volumes = {patient: self.volumes[patient][number] for patient in patients}
            absent = [0 if volume > 0 else 1 for volume in volumes.values()]
            result[f"structure.{number}"] = _groups(absent, 2, least)
            counted = countable({patient: volume > 0 for patient, volume in volumes.items()}, least)
            bins = {patient: volume_bin(volumes[patient]) for patient in counted}
            result[f"volume.{number}"] = bins_of(bins, VOLUME_BINS, least)
        return result


@dataclass
class _Geometry:
    """The bins of spacing, size and extent of each patient's first case."""

    bins: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def values(self) -> dict[str, list[int]]:
        """Return the patients in each bin, for every axis of each."""
        names = [f"{what}.{axis}" for what in GEOMETRY for axis in AXES]
        axes = (Counter(one[place] for one in self.bins.values()) for place, _ in enumerate(names))
        return {name: _dense(counts, 0, LENGTH_BINS) for name, counts in zip(names, axes, strict=True)}


def _of_images(
    data: SiteDataModule, scope: Scope, images: Images, least: int, each_once: bool
) -> dict[str, list[int]]:
    structures, geometry = _Structures(scope.structures), _Geometry()

    def also(case: Case, image: Volume, label: Volume | None) -> None:
        structures.add(case, image, label)
        geometry.bins.setdefault(case.patient, geometry_bins(image))

    try:
        sums = fingerprint(
            replace(data.index, cases=data.cases("train")),
            grid=scope.grid,
            classes=data.label_classes if data.needs == "segment" else None,
            settings=images,
            min_count=least,
            also=also,
        )
    except TooFewPatientsError:
        return {}
    values = {**_fingerprint_values(sums), **(structures.values(least) if scope.structures else {})}
    return {**values, **geometry.values()} if each_once else values


def _fingerprint_values(sums: Fingerprint) -> dict[str, list[int]]:
    values: dict[str, list[int]] = {}
    for what in GEOMETRY:
        for axis, counts in zip(AXES, getattr(sums, what), strict=True):
            values[f"{what}.{axis}"] = _dense(counts, 0, LENGTH_BINS)
    for number, counts in enumerate(sums.intensity):
        bins = first_intensity_bin(sums.grid), intensity_bins(sums.grid)
        values[f"intensity.{number}"] = _dense(counts, *bins)
    values["intensity.withheld"] = [sum(not counts for counts in sums.intensity)]
    values["intensity.total"] = list(sums.total)
    values["intensity.squares"] = list(sums.squares)
    values["intensity.counted"] = list(sums.counted)
    values["intensity.landmarks"] = [one for channel in sums.landmarks for one in channel]
    return values


def _dense(counts: histogram.Counts, first: int, size: int) -> list[int]:
    """Return a histogram with all its bins; what lies beyond is in the first or last."""
    result = [0] * size
    for number, count in counts.items():
        result[min(max(number - first, 0), size - 1)] += count
    return result


# ------------------------------------------------------------------------------------------------ columns


@dataclass(frozen=True)
class _Rows:
    """Rows of training cases: their patients, numbers (N, F) with NaN where empty, and words (N, W)."""

    patients: list[str]
    numbers: NDArray[np.float64]
    words: NDArray[np.float64]

    @property
    def first(self) -> dict[str, int]:
        """The first row of each patient."""
        rows: dict[str, int] = {}
        for row, patient in enumerate(self.patients):
            rows.setdefault(patient, row)
        return rows


def _rows_of(data: SiteDataModule, cases: Sequence[Case]) -> _Rows:
    """Return the training cases' rows of a table, or of the table beside their images."""
    if isinstance(data.settings, Table):
        table = data.rows
        places = {case.token: number for number, case in enumerate(table.index.cases)}
        rows = [(case, table.numbers[places[case.token]], table.words[places[case.token]]) for case in cases]
    else:
        beside = data.index.rows
        assert beside is not None
        rows = [
            (case, np.asarray(beside.numbers[case.token], np.float64), np.asarray(beside.words[case.token]))
            for case in cases
            if case.token in beside.numbers
        ]
    numbers = np.array([one for _, one, _ in rows], np.float64).reshape(len(rows), -1)
    words = np.array([one for _, _, one in rows], np.float64).reshape(len(rows), -1)
    return _Rows([case.patient for case, _, _ in rows], numbers, words)


def _of_columns(rows: _Rows, table: Table, least: int) -> dict[str, list[int]]:
    values: dict[str, list[int]] = {}
    columns = [_column(rows, number, least) for number in range(len(table.numbers))]
    names = ("columns.counted", "columns.total", "columns.within", "columns.exact", "columns.squares")
    values |= {name: [one[place] for one in columns] for place, name in enumerate(names)}
    for number in range(len(table.numbers)):
        values[f"known.{number}"] = _known(_has_value(rows, number).values(), least)
    start = 0
    for number, words in enumerate(table.categorical.values()):
        said = rows.words[:, start : start + len(words)]
        start += len(words)
        groups = [int(said[row].argmax()) if said[row].any() else len(words) for row in rows.first.values()]
        values[f"words.{number}"] = _groups(groups, len(words) + 1, least)
    return values


def _has_value(rows: _Rows, number: int) -> dict[str, bool]:
    """Return of each patient whether any row has a number in this column."""
    has: dict[str, bool] = {}
    for patient, value in zip(rows.patients, rows.numbers[:, number], strict=True):
        has[patient] = has.get(patient, False) or not np.isnan(value)
    return has


def _column(rows: _Rows, number: int, least: int) -> tuple[int, int, int, int, int]:
    """Return how many values are counted, total, squares about their mean, exact total and exact squares."""
    patients = countable(_has_value(rows, number), least)
    column = rows.numbers[:, number]
    used = np.array([patient in patients for patient in rows.patients], bool) & ~np.isnan(column)
    values = column[used]
    if not len(values):
        return 0, 0, 0, 0, 0
    within = ((values - values.mean()) ** 2).sum()
    steps = [round(value * FIXED_POINT) for value in values.tolist()]
    total, squares = round(float(values.sum()) * FIXED_POINT), round(float(within) * FIXED_POINT)
    return len(values), total, squares, sum(steps), sum(step * step for step in steps)
