"""Nearest-neighbour mixing of the models before Krum, multi-Krum or Bulyan select, for hospitals that differ.

Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan: Fixing by Mixing: A Recipe for Optimal Byzantine
ML under Heterogeneity, AISTATS 2023, arXiv:2302.01772: each site's model is replaced by the mean of the
n - f models nearest to it, its own included. Krum selects one model, and if hospitals differ that is one
hospital's; a mixed model is a mean of n - f hospitals, and a distant attacker is in none of the honest sites'
means. Departure: the rule mixes models, the paper gradients. Of equal distances the first site by name wins.

A mixed model is a combination of the sites' models, so only its coefficients are computed here, and selecting
among mixed models needs no further pass over the updates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mixing_coefficients(distances: Tensor, attackers: int) -> Tensor:
    """Return the mixed models' coefficients (sites, sites): 1 / (n - f) for the n - f nearest of each row."""
    count = len(distances)
    nearest = distances.argsort(dim=1, stable=True)[:, : count - attackers]
    return torch.zeros(count, count, dtype=torch.float64).scatter_(1, nearest, 1 / (count - attackers))


def mixed_distances(distances: Tensor, mixing: Tensor) -> Tensor:
    """Return the (sites, sites) squared distances between mixed models, from those between the sites' models.

    For coefficients c that sum to zero, |sum c_k x_k|^2 is - 1/2 sum c_i c_j |x_i - x_j|^2. Two rows
    with the same neighbours are at distance 0 exactly; a row that mixes in a site at infinite
    distance is infinitely far.
    """
    difference = mixing[:, None] - mixing[None]
    finite = torch.where(
        distances.isfinite(), distances, torch.finfo(torch.float64).max / len(distances) ** 2
    )
    return torch.einsum("abi,ij,abj->ab", difference, finite, difference).mul_(-0.5).clamp_(min=0)
