"""Geometric median: the model whose distances to the sites' models have the smallest sum.

Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing
2022, arXiv:1912.13445 (RFA): the smoothed Weiszfeld iteration, z <- sum b_k x_k / sum b_k with b_k = a_k /
max(nu, |z - x_k|). It withstands sites with less than half of the weight a, and is rotation invariant, unlike
the coordinate-wise median.

Departures. z is a combination of the sites' deltas, so the iteration needs only their scalar products: one
pass over the updates computes that table, any number of steps run on it, and a second pass merges; in the
paper each iteration costs a round of communication. It starts from the global model, not from the mean,
which one huge update could move anywhere. nu is 1e-6 of the median length of a delta. Sites count equally
unless `by_examples` is set (the paper's a_k), because a site that could weight itself by a number it states
could buy the majority.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfed.aggregation._distances import distances_to, scalar_products
from medfed.aggregation._reduce import add_weighted_deltas
from medfed.aggregation._rule import AtLeastOne, Merged, Positive, Rule, State, Updates
from medfed.aggregation._updates import newest_round, shares, validated_updates
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights

# As a share of the median length of a delta: closer than this to a site's model, the sum of
# distances is smoothed. Float64 still resolves distances there to ten digits, and the model moves by
# less than float32 shows.
SMOOTHING = 1e-6


class GeometricMedian(Rule, frozen=True, tag="geometric_median"):
    """The model with the smallest sum of distances to the sites' models; withstands fewer than half of them.

    It stops when the sites' total pull (the weighted sum of unit vectors towards each, at most 1) is below
    `tolerance`.
    """

    tolerance: Positive = 1e-6
    iterations: AtLeastOne = 10_000
    by_examples: bool = False

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        portions = shares(sites) if self.by_examples else [1 / len(sites)] * len(sites)
        factors = self._weiszfeld(scalar_products(sites, weights), torch.tensor(portions).double(), sites)
        return add_weighted_deltas(sites, factors.tolist(), weights), state

    def _weiszfeld(self, products: Tensor, portions: Tensor, sites: list[Update]) -> Tensor:
        """Return the coefficients of the geometric median over the sites' deltas; they sum to one."""
        lengths = products.diagonal().clamp(min=0).sqrt()
        typical = _median(lengths, portions)
        if len(sites) == 1 or typical == 0:
            # At least half of the weight did not move, so the global model has the smallest sum. (A single
            # site is its own median.)
            return portions if len(sites) == 1 else torch.zeros_like(portions)
        smooth = SMOOTHING * typical
        pulls = portions / lengths.clamp(min=smooth)
        now = pulls / pulls.sum()
        pull = torch.inf
        for _ in range(self.iterations):
            pulls = portions / distances_to(products, now).clamp(min=smooth)
            after = pulls / pulls.sum()
            moved = after - now
            # The gradient of the sum of distances is the step times the sum of pulls.
            pull = float((moved @ products @ moved).clamp(min=0).sqrt() * pulls.sum())
            now = after
            if pull <= self.tolerance:
                return now
        raise RuleError(
            f"geometric_median for round {newest_round(sites)}: after {self.iterations} iterations the sites "
            f"still pull by {pull:.2g}, tolerance is {self.tolerance:.2g}; raise rule.tolerance or "
            f"rule.iterations"
        )


def _median(values: Tensor, portions: Tensor) -> float:
    order = values.argsort(stable=True)
    reached = portions[order].cumsum(0)
    return float(values[order][int((reached < 0.5).sum())])
