"""ComBat for the features of tables: it removes scanner and site effects with sums that hospitals can add.

Johnson, Li and Rabinovic, Biostatistics 2007; Fortin et al., NeuroImage 2018 for measures from images. ComBat
needs each feature's mean over all hospitals and its deviation within hospitals: `sums` computes a hospital's
sums for that, `merge_sums` adds them, and `centre_and_scale` gives the values that go into the study. A
hospital's own shift and factor, shrunk towards those of its other features (empirical Bayes), are computed in
the hospital and stay there. Departs from the papers: no covariates are kept, so a feature whose mean differs
because the patients differ is shifted, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from medfed.data.case import Case
from medfed.data.histogram import Whole, add_records
from medfed.errors import DataError, TooFewPatientsError

_Floats = NDArray[np.floating[Any]]

# Sums are whole multiples of 1/FIXED_POINT, so that the order of addition does not change them.
FIXED_POINT = 1 << 20
# The shrunk estimates have converged when none changes by more than this fraction; the authors' code of 2007
# stops there, too.
CONVERGED, MAX_STEPS = 1e-4, 1000
# A standard deviation below this fraction of a feature's magnitude is rounding: the feature is constant.
CONSTANT = 1e-9


class TableSums(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sums over a hospital's training rows, or over several hospitals'.

    features: the columns that are numbers.  sites, patients: how many are included.  counted: for each
    feature, the rows with a value, or 0 if the site withheld it.  total: the sum of the values.  squares: the
    sum of squared distances from the site's own mean. The last two are multiples of 1/1048576.
    """

    version: Literal[1] = 1
    features: tuple[str, ...]
    sites: Whole
    patients: Whole
    counted: tuple[Whole, ...]
    total: tuple[int, ...]
    squares: tuple[Whole, ...]


def sums(
    numbers: NDArray[np.float64], patients: Sequence[str], features: tuple[str, ...], *, min_count: int = 10
) -> TableSums:
    """Return the sums of a hospital's training rows; features of too few patients are withheld.

    Args:
        numbers: (N, F), NaN where a cell is empty.
        patients: the patient of each row.
        features: the names of the columns.
        min_count: a feature with values of fewer patients than this is withheld.

    Raises:
        TooFewPatientsError: for fewer than `min_count` patients; then everything would be withheld.
    """
    count = len(set(patients))
    if count < max(min_count, 1):
        raise TooFewPatientsError(
            f"the site has {count} training patients and withholds numbers of fewer than {min_count}; "
            "it can train without giving its sums"
        )
    columns = [_column_sums(column, np.array(patients), min_count) for column in numbers.T]
    counted, total, squares = zip(*columns, strict=True) if columns else ((), (), ())
    return TableSums(
        features=features, sites=1, patients=count, counted=counted, total=total, squares=squares
    )


def _column_sums(column: _Floats, patients: NDArray[np.str_], min_count: int) -> tuple[int, int, int]:
    """Return how many cells have a value, their total and their squares; zeros for too few patients."""
    known = ~np.isnan(column)
    if len(set(patients[known].tolist())) < min_count:
        return 0, 0, 0
    values = column[known]
    squares = ((values - values.mean()) ** 2).sum()
    return len(values), round(float(values.sum()) * FIXED_POINT), round(float(squares) * FIXED_POINT)


def merge_sums(parts: Iterable[TableSums]) -> TableSums:
    """Return the total of several sites' sums, the same in any order.

    Raises:
        DataError: for no sums, or for sums of different features.
    """
    sites = list(parts)
    if not sites:
        raise DataError("no site gave its sums; one or more are needed")
    if len({one.features for one in sites}) > 1:
        raise DataError("the sites' sums are of different features; every site must use the study's")

    return add_records(sites, ("sites", "patients", "counted", "total", "squares"))


def centre_and_scale(merged: TableSums) -> tuple[dict[str, float], dict[str, float]]:
    """Return each feature's mean over all hospitals, and its standard deviation within them.

    Raises:
        DataError: for a feature that every site withheld.
    """
    centre, scale = {}, {}
    for name, count, total, squares in zip(
        merged.features, merged.counted, merged.total, merged.squares, strict=True
    ):
        if not count:
            raise DataError(f"feature '{name}': every site has too few patients with it; omit it")
        centre[name] = total / FIXED_POINT / count
        deviation = (squares / FIXED_POINT / count) ** 0.5
        scale[name] = deviation if deviation > CONSTANT * max(abs(centre[name]), 1.0) else 1.0
    return centre, scale


def combat(
    numbers: NDArray[np.float64], centre: NDArray[np.float64], scale: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a hospital's own centre and scale of each feature, which give ComBat's values
    in units of `scale`.

    Args:
        numbers: (N, F), the hospital's training rows, NaN where a cell is empty.
        centre: (F,), means over all hospitals.
        scale: (F,), deviations within hospitals.
    """
    z = (numbers - centre) / scale
    known = ~np.isnan(z)
    n = known.sum(axis=0)
    enough = n >= 2
    shift, factor = np.zeros(len(centre)), np.ones(len(centre))
    if enough.any():
        mean = np.nanmean(z[:, enough], axis=0)
        variance = np.nanvar(z[:, enough], axis=0, ddof=1)
        shift[enough], factor[enough] = _shrink(z[:, enough], n[enough], mean, variance)
    return centre + scale * shift, scale * np.sqrt(np.where(factor > CONSTANT, factor, 1.0))


def _shrink(z: _Floats, n: NDArray[np.int64], mean: _Floats, variance: _Floats) -> tuple[_Floats, _Floats]:
    """Return posterior means of shifts and variances (equations 2.4 to 2.6 of the 2007 paper)."""
    if len(mean) < 3 or np.var(mean, ddof=1) == 0 or np.var(variance, ddof=1) == 0:
        return mean, variance  # nothing to learn a prior from
    prior, spread = mean.mean(), np.var(mean, ddof=1)
    m, s2 = variance.mean(), np.var(variance, ddof=1)
    shape, rate = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
    shift, factor = mean, variance
    for _ in range(MAX_STEPS):
        before = shift, factor
        shift = (n * spread * mean + factor * prior) / (n * spread + factor)
        squares = np.nansum((z - shift) ** 2, axis=0)
        factor = (0.5 * squares + rate) / (n / 2 + shape - 1)
        change = max(
            np.abs(new - old).max() / max(np.abs(old).max(), 1e-12)
            for new, old in zip((shift, factor), before, strict=True)
        )
        if change < CONVERGED:
            break
    return shift, factor


# From fewer patients than this, a mean and a deviation say more about who was chosen than about the hospital.
MIN_SCALE_PATIENTS = 10


def check_own_scale(cases: Sequence[Case], standardise: str) -> None:
    """Check that a table that is not trained on has enough patients for means of its own.

    With `standardise: site` the numbers of a single new patient would be their own means: all who come alone
    would get the same prediction.

    Raises:
        DataError: saying what to do.
    """
    if standardise != "site":
        return
    patients = {case.patient for case in cases if case.split == "train"} or {one.patient for one in cases}
    if len(patients) < MIN_SCALE_PATIENTS:
        raise DataError(
            "the study scales numbers by the means of the hospital's own training patients (standardise is "
            f"'site'), and this table has fewer than {MIN_SCALE_PATIENTS} of them; add the new rows to the "
            "table that trained and predict over it, or train with standardise: fixed, which scales all "
            "hospitals alike"
        )
