"""What in a table may mean something else than it says: a word to the hospital before it trains.

Each finding is a sentence that may be printed and reported: it names columns of the study and counts of at
least `FEW` rows, and no cell other than the usual stand-ins for a missing value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.identifiers import ID_DIGITS, PLACEHOLDERS, kind_by_numbers

# Counts of fewer rows than this are not told.
FEW = 5

# Numbers that exports write for 'not measured'.
STAND_INS = (0.0, -1.0, -9.0, -99.0, -999.0, -9999.0, 9.0, 99.0, 999.0, 9999.0, 99999.0, 888.0, 8888.0, 777.0)
# A column with fewer other values than this is a code or a count, of which nothing is far away.
MIN_DIFFERENT = 10
# Whole numbers from the first of these years and before the last are probably years.
FIRST_YEAR, LAST_YEAR = 1900, 2100
# From so many rows on, numbers of at least 3 digits of which this share differs may be ids drawn by lot.
MIN_ROWS_OF_IDS, OWN_SHARE, SMALLEST_ID = 100, 0.9, 100
# Kolmogorov and Smirnov's limit of 5 %, times the root of the number of rows.
EVEN_SPREAD = 1.36
# A stand-in is apart if it is this many interquartile ranges from every other value...
APART_RANGES = 0.5
# ...or, in at least this share of the rows, this many of the usual steps between two neighbouring values.
APART_STEPS = 5
OFTEN = 0.05


def count_of_rows(count: int) -> str:
    """Return a count for a message: small ones could point at a patient.

    >>> count_of_rows(123), count_of_rows(1)
    ('123 rows', 'fewer than 5 rows')
    """
    return f"{count} rows" if count >= FEW else f"fewer than {FEW} rows"


def number_findings(name: str, values: NDArray[np.float64]) -> list[str]:
    """Return what is odd about a column of numbers (N,), NaN where it is empty."""
    filled = values[~np.isnan(values)]
    if len(filled) >= FEW and len(np.unique(filled)) == 1:
        return [f"column '{name}' has one value in all rows: if it stands for 'not measured', {_cure(name)}"]
    found = _code_findings(name, filled)
    for value, count in stand_ins(filled):
        found.append(
            f"column '{name}' holds {value:g} in {count_of_rows(count)}, far from its other values: if it "
            f"stands for 'not measured', {_cure(name)}"
        )
    return found


def _code_findings(name: str, values: NDArray[np.float64]) -> list[str]:
    """Return what speaks for numbers (N,) that name something and measure nothing: postcodes, ids, years."""
    different = np.unique(np.abs(values))
    if len(different) < MIN_DIFFERENT or (different % 1).any():
        return []
    if different[0] >= FIRST_YEAR and different[-1] < LAST_YEAR:
        return [
            f"column '{name}' looks like years: a year of birth says who a patient is, and a year of "
            "examination differs between training and use; if it is one, remove it or make it an age"
        ]
    # Measurements of so many digits are rounded: platelets are counted in thousands.
    equally_long = len(str(int(different[0]))) == len(str(int(different[-1]))) >= ID_DIGITS
    if equally_long and (different % 10).any():
        return [
            f"column '{name}' holds whole numbers of {len(str(int(different[0])))} digits: ids and postcodes "
            "look like this; if it is no measurement, remove it or name it in data.ignore"
        ]
    if (different % 10).any() and _are_short_ids(values):
        return [
            f"column '{name}' holds whole numbers of {len(str(int(different[0])))} digits, spread evenly, "
            "and nearly every row has one of its own: random ids look like this; if it is no measurement, "
            "remove it or name it in data.ignore"
        ]
    return []


def _are_short_ids(values: NDArray[np.float64]) -> bool:
    """Whether whole numbers (N,) of few and equally many digits are as evenly spread as ids drawn by lot.

    Measurements heap up around a usual value. The distance to an even spread over their own range is that of
    Kolmogorov and Smirnov, at its limit of 5 %.
    """
    count, different = len(values), np.unique(values)
    if count < MIN_ROWS_OF_IDS or len(different) < OWN_SHARE * count or different[0] < SMALLEST_ID:
        return False
    if len(str(int(different[0]))) != len(str(int(different[-1]))):
        return False
    ordered = (np.sort(values) - different[0]) / (different[-1] - different[0])
    below = np.arange(count) / count
    distance = max(np.abs(ordered - below).max(), np.abs(ordered - below - 1 / count).max())
    return bool(distance < EVEN_SPREAD / np.sqrt(count))


def _cure(name: str) -> str:
    return f"say so in data.missing_values.{name}"


def stand_ins(values: NDArray[np.float64]) -> list[tuple[float, int]]:
    """Return the numbers in a column (N,) that probably stand for a missing one, each with its count."""
    found: list[tuple[float, int]] = []
    for value in STAND_INS:
        is_it = values == value
        count = int(is_it.sum())
        if count and _is_apart(value, count, values[~is_it & ~np.isin(values, [v for v, _ in found])]):
            found.append((value, count))
    return found


def _is_apart(value: float, count: int, others: NDArray[np.float64]) -> bool:
    """Whether a value lies outside of all others, by more than they differ from each other."""
    different = np.unique(others)
    if len(different) < MIN_DIFFERENT or different[0] < value < different[-1]:
        return False
    gap = max(different[0] - value, value - different[-1])
    low, high = np.quantile(others, [0.25, 0.75])
    steps = APART_STEPS * float(np.median(np.diff(different)))
    return bool(gap > APART_RANGES * (high - low) or (gap > steps and count >= OFTEN * len(others)))


def identifier_findings(features: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the features whose numbers look like ids or dates."""
    return [
        f"column '{name}' looks like ids or dates: nearly every row has a value of its own; a model may "
        "learn patients by heart from it; if it is no measurement, remove it from data.features"
        for name, cells in features.items()
        if kind_by_numbers([cell for cell in cells if cell.lower() not in PLACEHOLDERS]) is not None
    ]


def duplicate_findings(rows: NDArray[Any], splits: Sequence[str]) -> list[str]:
    """Return for val and test how many rows equal a training row.

    Args:
        rows: features and target (N, F), NaN where empty.
        splits: the row's split.
    """
    keys = [row.tobytes() for row in np.ascontiguousarray(np.nan_to_num(rows, nan=-1.25e300))]
    trained = {key for key, split in zip(keys, splits, strict=True) if split == "train"}
    total = Counter(splits)
    repeated = Counter(
        split for key, split in zip(keys, splits, strict=True) if split != "train" and key in trained
    )
    return [
        f"{count_of_rows(repeated[split])} of the {split} split (it has {total[split]}) equal a training row "
        "in every feature and in what is predicted: if they are the same patients, scores are too good; name "
        "the column with patients' ids in data.patient"
        for split in ("val", "test")
        if repeated[split]
    ]
