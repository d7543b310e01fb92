"""Krum's choice, which Krum, multi-Krum and Bulyan share.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent, NeurIPS 2017, arXiv:1703.02757.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medfed.aggregation._mixing import mixed_distances, nearest


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


def mixed_if(mixing: bool, distances: Tensor, attackers: int) -> tuple[Tensor, Tensor]:
    """Return the distances to choose by, and the coefficients over the sites of what there is to choose from.

    Without mixing these are the sites' own models; with it see `_mixing`.
    """
    if not mixing:
        return distances, torch.eye(len(distances), dtype=torch.float64)
    table = nearest(distances, attackers)
    return mixed_distances(distances, table), table


def factors_of(chosen: Sequence[int], table: Tensor) -> dict[int, float]:
    """Return the factors of the sites that the mean of the chosen is made of; the others stay out altogether."""
    mean = table[sorted(chosen)].mean(0).tolist()
    return {site: factor for site, factor in enumerate(mean) if factor > 0}
