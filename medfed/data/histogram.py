"""Histograms with fixed bins, which hospitals can add, and the suppression of bins with few patients.

Percentiles of the sum are exact to a bin. An average of each site's percentiles would be off by tens of HU,
since no average of percentiles is a percentile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from medfed.errors import DataError

Whole = Annotated[int, Meta(ge=0)]
Grid = Literal["hu", "relative"]
Counts = dict[int, Whole]
_Record = TypeVar("_Record", bound=msgspec.Struct)

# HU bins are 1 wide and centred on whole numbers; values beyond count in the first or last.
MIN_HU, MAX_HU = -1024, 3071
# Scanners' own units span decades: bins of 1/200 of a decade, 1.2 % wide, from 1e-3 to 1e7, on both sides of
# zero.
BINS_PER_DECADE, MIN_DECADE, MAX_DECADE = 200, -3, 7
# Spacings, sizes and extents: bins of 1/400 of a decade, 0.6 % wide, from 1e-3.
LENGTH_BINS_PER_DECADE, MIN_LENGTH_DECADE = 400, -3


def intensity_bins(values: NDArray[np.floating[Any]], grid: Grid) -> NDArray[np.int64]:
    """Return the number of the bin of each intensity."""
    if grid == "hu":
        rounded: NDArray[np.int64] = np.rint(values.clip(MIN_HU, MAX_HU)).astype(np.int64)
        return rounded
    small = 10.0**MIN_DECADE
    size = np.log10(np.abs(values).clip(small, 10.0**MAX_DECADE)) - MIN_DECADE
    number = np.floor(size * BINS_PER_DECADE).astype(np.int64) + 1
    return np.where(np.abs(values) < small, 0, np.where(values < 0, -number, number))


def bin_to_intensity(number: int, grid: Grid) -> float:
    """Return the intensity in the middle of a bin."""
    if grid == "hu":
        return float(number)
    if number == 0:
        return 0.0
    size = 10 ** ((abs(number) - 0.5) / BINS_PER_DECADE + MIN_DECADE)
    return float(size if number > 0 else -size)


def length_bin(value: float) -> int:
    """Return the bin of a spacing, size or extent; 1, 10 and 100 lie in the middle of theirs."""
    return round((float(np.log10(value)) - MIN_LENGTH_DECADE) * LENGTH_BINS_PER_DECADE)


def bin_to_length(number: int) -> float:
    """Return the spacing, size or extent in the middle of a bin."""
    return float(10 ** (number / LENGTH_BINS_PER_DECADE + MIN_LENGTH_DECADE))


def quantile(counts: Mapping[int, int], share: float) -> int:
    """Return the bin at or below which this share of a histogram lies.

    Raises:
        DataError: for an empty histogram.
    """
    total = sum(counts.values())
    if not total:
        raise DataError("the fingerprint's histogram is empty; it needs cases with labels")
    below = 0
    for number in sorted(counts):
        below += counts[number]
        if below >= share * total:
            return number
    return max(counts)


def add_records(records: Sequence[_Record], fields: Iterable[str]) -> _Record:
    """Return the first record with each of these fields summed over all records, the same in any order."""
    totals = {name: _total([getattr(record, name) for record in records]) for name in fields}
    return msgspec.structs.replace(records[0], **totals)


def _total(values: Sequence[Any]) -> Any:
    """Return the sum of whole numbers, of histograms, or of tuples of either, item by item."""
    if isinstance(values[0], int):
        return sum(values)
    if isinstance(values[0], tuple):
        return tuple(_total(column) for column in zip(*values, strict=True))
    counts: Counter[int] = Counter()
    for part in values:
        counts.update(part)
    return dict(sorted(counts.items()))


def suppress_small_bins(
    counts: Mapping[int, int], min_count: int, people: Mapping[int, int] | None = None
) -> Counts:
    """Return a histogram in which each bin stands for at least `min_count`, with the same total and median.

    The counts of smaller bins move into the next bin towards the median, from both ends. `people` is the
    number of patients in each bin, if that is not its count. If too few remain at the median itself, they
    join the nearest bin; if the whole histogram has too few, it is empty.
    """
    people = counts if people is None else people
    if sum(people.values()) < min_count:
        return {}
    median = quantile(counts, 0.5)
    result: Counts = {}
    median_count, median_people = counts.get(median, 0), people.get(median, 0)
    for side in (
        sorted(number for number in counts if number < median),
        sorted((number for number in counts if number > median), reverse=True),
    ):
        carried_count = carried_people = 0
        for number in side:
            carried_count += counts[number]
            carried_people += people[number]
            if carried_people >= min_count:
                result[number] = carried_count
                carried_count = carried_people = 0
        median_count += carried_count
        median_people += carried_people
    if median_people < min_count and result:
        nearest = min(result, key=lambda number: (abs(number - median), number))
        result[nearest] += median_count
    else:
        result[median] = median_count
    return result
