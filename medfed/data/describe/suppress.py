"""How numbers over few patients stay in a hospital, and those from which they would follow.

A group of fewer than `least` patients is withheld; so is the next smallest one as long as all that is
withheld together is fewer, since the total would give it. What is withheld is counted in a group of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from medfed.data.histogram import suppress_small_bins

_Patient = TypeVar("_Patient", bound=Hashable)


def with_small_withheld(groups: Sequence[int], least: int) -> list[int]:
    """Return the patients of each group, small groups as 0, and at the end the patients of those groups.

    >>> with_small_withheld([30, 12, 3, 0], least=5)
    [30, 0, 0, 0, 15]
    """
    kept, withheld = list(groups), 0
    while True:
        left = [(count, number) for number, count in enumerate(kept) if count]
        small = [one for one in left if one[0] < least]
        if not small and (withheld == 0 or withheld >= least or not left):
            return [*kept, withheld]
        count, number = min(left)
        withheld += count
        kept[number] = 0


def countable(patients: Mapping[_Patient, bool], least: int) -> frozenset[_Patient]:
    """Return of which patients a sum may be told, of whom some have a value and others have none.

    `patients` says of each whether it has a value, in an order that says nothing (that of salted tokens). If
    fewer than `least` have none, the first of the others are left out beside them, so that no number of
    patients from 1 to `least` - 1 can be told by a difference. Nobody is left if too few would remain.
    """
    known = [patient for patient, has_value in patients.items() if has_value]
    missing = len(patients) - len(known)
    out = least - missing if 0 < missing < least else 0
    kept = known[out:]
    return frozenset(kept) if len(kept) >= max(least, 1) else frozenset()


def bins_of(numbers: Mapping[_Patient, int], size: int, least: int) -> list[int]:
    """Return how many patients are in each of `size` bins, small bins moved towards the median."""
    counts: dict[int, int] = {}
    for number in numbers.values():
        counts[number] = counts.get(number, 0) + 1
    released = suppress_small_bins(counts, least) if counts else {}
    return [released.get(number, 0) for number in range(size)]
