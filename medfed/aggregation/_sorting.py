"""A sorting network over rows, for the rules that order the sites' values of each weight."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def sorted_rows(rows: Tensor) -> list[Tensor]:
    """Return the rows (sites, elements) sorted element by element, smallest first; `rows` is overwritten.

    A sorting network replaces pairs of rows by their minimum and maximum, which runs at the speed of
    the cache; a sort along the short axis takes several times as long. The result is exact for equal
    and for huge values.
    """
    ordered = list(rows)
    spare = torch.empty_like(rows[0])
    for low, high in network(len(ordered)):
        torch.minimum(ordered[low], ordered[high], out=spare)
        torch.maximum(ordered[low], ordered[high], out=ordered[high])
        ordered[low], spare = spare, ordered[low]
    return ordered


@cache
def network(size: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs to compare, in order: Batcher's merge exchange (Knuth 3, 5.2.2, algorithm M)."""
    pairs = []
    top = 1 << max(0, (size - 1).bit_length() - 1) if size > 1 else 0
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            pairs += [(i, i + d) for i in range(size - d) if i & p == r]
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(pairs)


def sorted_median(ordered: list[Tensor]) -> Tensor:
    """Return the median of sorted rows: the middle row, or the mean of the two middle rows."""
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle].clone()
    return ordered[middle - 1] * 0.5 + ordered[middle] * 0.5


def mean_row(ordered: list[Tensor]) -> Tensor:
    """Return the mean of the rows, added in their order."""
    total = ordered[0].clone()
    for row in ordered[1:]:
        total.add_(row)
    return total.div_(len(ordered))
