"""Krum's choice, which Krum, multi-Krum and Bulyan share.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent, NeurIPS 2017, arXiv:1703.02757.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def scores(distances: Tensor, among: Sequence[int], neighbours: int) -> list[float]:
    """Return, for each of these sites, the sum of squared distances to its nearest neighbours among them."""
    found = []
    for one in among:
        others = [other for other in among if other != one]
        found.append(float(distances[one, others].sort().values[:neighbours].sum()) if others else 0.0)
    return found


def best(distances: Tensor, among: Sequence[int], neighbours: int, count: int) -> list[int]:
    """Return the `count` sites with the lowest scores, lowest first; of equal ones the first by name."""
    scored = sorted(zip(scores(distances, among, neighbours), among, strict=True))
    return [site for _, site in scored[:count]]
