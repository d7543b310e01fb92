"""ComBat for the features of tables: each hospital's scanner and habits taken out, with sums
that hospitals can add.

Johnson, Li and Rabinovic, Biostatistics 2007; Fortin et al., NeuroImage 2018 for measures from images. What
ComBat needs from all hospitals together is each feature's mean and its deviation within hospitals: `sums`
makes a hospital's counts for that, `merge_sums` adds them, `centre_and_scale` is what the study then says. A
hospital's own shift and factor, shrunk towards those of its other features (empirical Bayes), are computed in
the hospital and stay there. Departs from the papers: no covariates are kept, so that a feature whose mean
differs because the patients do is moved, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from medfed.errors import DataError

if TYPE_CHECKING:
    from medfed.data.table import TableRows

Whole = Annotated[int, Meta(ge=0)]

# Sums are kept as whole numbers of this part, so that they are the same in whatever order they are added.
PART = 1 << 20
# The shrunk estimates have settled when none changes by more than this part; 2007's own code stops there.
SETTLED, MOST_STEPS = 1e-4, 1000
# A deviation below this part of a feature's size is a constant's rounding.
CONSTANT = 1e-9


class TableSums(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sums over a hospital's training rows, or over several hospitals'.

    features: the columns that are numbers.  sites, patients: how many are in it.  counted: of each feature,
    rows with a value; 0 where a site withheld it.  total: their sum.  squares: of their distances from the
    site's own mean. The last two in parts of 1/1048576.
    """

    version: Literal[1] = 1
    features: tuple[str, ...]
    sites: Whole
    patients: Whole
    counted: tuple[Whole, ...]
    total: tuple[int, ...]
    squares: tuple[Whole, ...]


def sums(rows: TableRows, features: tuple[str, ...], *, min_count: int = 10) -> TableSums:
    """Return the sums of a hospital's training rows; a feature known of fewer than
    `min_count` patients is withheld.

    Raises:
        DataError: for fewer than `min_count` training patients, all of which would be withheld.
    """
    training = [i for i, case in enumerate(rows.index.cases) if case.split == "train"]
    patients = np.array([rows.index.cases[i].patient for i in training])
    if len(set(patients.tolist())) < min_count or not training:
        raise DataError(
            f"the site has {len(set(patients.tolist()))} training patients and withholds numbers of fewer than {min_count}; "
            f"it can train without giving its sums"
        )
    counted, total, squares = [], [], []
    for column in rows.numbers[training].T:
        known = ~np.isnan(column)
        values = column[known].astype(np.float64)
        told = len(set(patients[known].tolist())) >= min_count
        counted.append(int(known.sum()) if told else 0)
        total.append(round(float(values.sum()) * PART) if told else 0)
        squares.append(round(float(((values - values.mean()) ** 2).sum()) * PART) if told else 0)
    return TableSums(
        features=features,
        sites=1,
        patients=len(set(patients.tolist())),
        counted=tuple(counted),
        total=tuple(total),
        squares=tuple(squares),
    )


def merge_sums(parts: Iterable[TableSums]) -> TableSums:
    """Return the sum, the same in any order.

    Raises:
        DataError: for none, or for sums of other features.
    """
    all_ = list(parts)
    if not all_:
        raise DataError("no site gave its sums; one or more are due")
    if len({one.features for one in all_}) > 1:
        raise DataError("the sites' sums are of different features; every site must use the study's")

    def rows(name: str) -> tuple[int, ...]:
        return tuple(sum(column) for column in zip(*(getattr(one, name) for one in all_), strict=True))

    return TableSums(
        features=all_[0].features,
        sites=sum(one.sites for one in all_),
        patients=sum(one.patients for one in all_),
        counted=rows("counted"),
        total=rows("total"),
        squares=rows("squares"),
    )


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
            raise DataError(f"feature '{name}': every site has too few patients with it; leave it out")
        centre[name] = total / PART / count
        deviation = (squares / PART / count) ** 0.5
        scale[name] = deviation if deviation > CONSTANT * max(abs(centre[name]), 1.0) else 1.0
    return centre, scale


def combat(
    numbers: NDArray[np.float64], centre: NDArray[np.float64], scale: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a hospital's own centre and scale of each feature: after them, ComBat's values
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
        shift[enough], factor[enough] = _shrunk(z[:, enough], n[enough], mean, variance)
    return centre + scale * shift, scale * np.sqrt(np.where(factor > CONSTANT, factor, 1.0))


def _shrunk(z: NDArray, n: NDArray, mean: NDArray, variance: NDArray) -> tuple[NDArray, NDArray]:
    """Return posterior means of shifts and variances (equations 2.4 to 2.6 of the 2007 paper)."""
    if len(mean) < 3 or np.var(mean, ddof=1) == 0 or np.var(variance, ddof=1) == 0:
        return mean, variance  # nothing to learn a prior from
    prior, spread = mean.mean(), np.var(mean, ddof=1)
    m, s2 = variance.mean(), np.var(variance, ddof=1)
    shape, rate = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
    shift, factor = mean, variance
    for _ in range(MOST_STEPS):
        before = shift, factor
        shift = (n * spread * mean + factor * prior) / (n * spread + factor)
        apart = np.nansum((z - shift) ** 2, axis=0)
        factor = (0.5 * apart + rate) / (n / 2 + shape - 1)
        moved = max(
            np.abs(new - old).max() / max(np.abs(old).max(), 1e-12)
            for new, old in zip((shift, factor), before, strict=True)
        )
        if moved < SETTLED:
            break
    return shift, factor
