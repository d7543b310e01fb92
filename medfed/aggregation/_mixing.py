"""Nearest-neighbour mixing, before Krum, multi-Krum or Bulyan choose, for hospitals that differ.

Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by Mixing: A Recipe for Optimal Byzantine
ML under Heterogeneity, AISTATS 2023, arXiv:2302.01772: each site's model is replaced by the mean of the
n - f models nearest to it, its own among them. Krum keeps one model, which where hospitals differ is
one hospital's; of mixed models each is a mean of n - f hospitals, and an attacker that lies apart is in
none of the honest ones. Departure: models, where the paper takes gradients. Equal distances go to the
first site by name.

The mixed models are combinations of the sites', so only their coefficients are formed here; no further pass
over the updates is needed to choose among them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(distances: Tensor, attackers: int) -> Tensor:
    """Return the mixed models' coefficients, (sites, sites): a row has 1 / (n - f) for each of its
    n - f nearest.
    """
    count = len(distances)
    kept = distances.argsort(dim=1, stable=True)[:, : count - attackers]
    return torch.zeros(count, count, dtype=torch.float64).scatter_(1, kept, 1 / (count - attackers))


def mixed_distances(distances: Tensor, mixing: Tensor) -> Tensor:
    """Return the (sites, sites) squared distances between mixed models, from those between the sites'.

    For coefficients c that sum to zero, |sum c_k x_k|^2 is - 1/2 sum c_i c_j |x_i - x_j|^2. Two rows with the
    same neighbours are at distance 0 exactly; a row with a site at an infinite distance is infinitely far.
    """
    apart = mixing[:, None] - mixing[None]
    within = torch.where(
        distances.isfinite(), distances, torch.finfo(torch.float64).max / len(distances) ** 2
    )
    return torch.einsum("abi,ij,abj->ab", apart, within, apart).mul_(-0.5).clamp_(min=0)
