"""Krum's selection of sites, which Krum, multi-Krum and Bulyan share.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent, NeurIPS 2017, arXiv:1703.02757.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medfed.aggregation._mixing import mixed_distances, mixing_coefficients


def krum_scores(distances: Tensor, among: Sequence[int], neighbours: int) -> list[float]:
    """Return each site's sum of squared distances to its nearest neighbours among these sites."""
    scores = []
    for one in among:
        others = [other for other in among if other != one]
        scores.append(float(distances[one, others].sort().values[:neighbours].sum()) if others else 0.0)
    return scores


def select_lowest(distances: Tensor, among: Sequence[int], neighbours: int, count: int) -> list[int]:
    """Return the `count` sites with the lowest scores, lowest first, ties in the order of names."""
    scored = sorted(zip(krum_scores(distances, among, neighbours), among, strict=True))
    return [site for _, site in scored[:count]]


def distances_and_mixing(mixing: bool, distances: Tensor, attackers: int) -> tuple[Tensor, Tensor]:
    """Return pairwise distances and the mixing matrix (the identity without mixing, see `_mixing`).

    Row k of the matrix holds the coefficients of the sites' models in the k-th candidate model.
    """
    if not mixing:
        return distances, torch.eye(len(distances), dtype=torch.float64)
    table = mixing_coefficients(distances, attackers)
    return mixed_distances(distances, table), table


def site_factors(chosen: Sequence[int], table: Tensor) -> dict[int, float]:
    """Return the sites' factors in the mean of the chosen candidates, for factors above 0."""
    mean = table[sorted(chosen)].mean(0).tolist()
    return {site: factor for site, factor in enumerate(mean) if factor > 0}
