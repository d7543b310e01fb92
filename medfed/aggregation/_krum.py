"""Krum's selection of sites, which Krum, multi-Krum and Bulyan share.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent, NeurIPS 2017, arXiv:1703.02757.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medfed.aggregation._distances import squared_distances
from medfed.aggregation._mixing import mixed_distances, mixing_coefficients
from medfed.aggregation._reduce import add_weighted_deltas
from medfed.wire.update import Update
from medfed.wire.weights import Weights


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


def distances_and_mixing(
    sites: Sequence[Update], weights: Weights, attackers: int, mixing: bool
) -> tuple[Tensor, Tensor]:
    """Return pairwise distances and the mixing matrix (the identity without mixing, see `_mixing`).

    Row k of the matrix holds the coefficients of the sites' models in the k-th candidate model.
    """
    distances = squared_distances(sites, weights)
    if not mixing:
        return distances, torch.eye(len(distances), dtype=torch.float64)
    table = mixing_coefficients(distances, attackers)
    return mixed_distances(distances, table), table


def krum_mean(
    sites: Sequence[Update], weights: Weights, attackers: int, mixing: bool, keep: int
) -> dict[str, Tensor]:
    """Return the mean of the `keep` candidate models closest to their n - f - 2 neighbours."""
    distances, table = distances_and_mixing(sites, weights, attackers, mixing)
    chosen = select_lowest(distances, range(len(sites)), len(sites) - attackers - 2, count=keep)
    # The sites' factors in the mean of the chosen candidates; a site without one is not read.
    mean = table[sorted(chosen)].mean(0).tolist()
    factors = {site: factor for site, factor in enumerate(mean) if factor > 0}
    return add_weighted_deltas([sites[number] for number in factors], list(factors.values()), weights)
