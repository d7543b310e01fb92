"""Geometric median: the model whose distances to the sites' models have the smallest sum.

Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing
2022, arXiv:1912.13445 (RFA): the smoothed Weiszfeld iteration, z <- sum b_k x_k / sum b_k with b_k = a_k /
max(nu, |z - x_k|). It withstands sites with less than half of the weight a, and is the same in every
orthogonal frame, which the coordinate-wise median isn't.

Departures. z is a combination of the sites' deltas, so the iteration needs only their scalar products: one
pass over the updates makes that table, any number of steps run on it, a second pass merges; the paper's
iterations each cost a round of communication. It starts from the global model, not from the mean, which one
huge update carries away. nu is 1e-6 of the median length of a delta. Sites count alike unless `by_examples`
is set (the paper's a_k), since a weight by a number that a site states itself would let it buy the majority.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from medfed.aggregation._distances import lengths_from, scalar_products
from medfed.aggregation._reduce import sums, write
from medfed.aggregation._rule import AtLeastOne, Positive, Rule, State, by_site, newest, shares
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights

# Of the median length of a delta: within this of a site's model the sum of distances is taken as smooth.
# Float64 still tells distances apart by ten digits there, and a model moves by less than float32 shows.
SMOOTHING = 1e-6


class GeometricMedian(Rule, frozen=True, tag="geometric_median"):
    """The model with the least sum of distances to the sites' models; withstands fewer than half of them.

    It stops where the pull of all sites together (unit vectors towards each, weighted; 1 at most) is below
    `tolerance`.
    """

    tolerance: Positive = 1e-6
    iterations: AtLeastOne = 10_000
    by_examples: bool = False

    needs_each_update: ClassVar[bool] = True

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        portions = shares(sites) if self.by_examples else [1 / len(sites)] * len(sites)
        factors = self._weiszfeld(scalar_products(sites, weights), torch.tensor(portions).double(), sites)
        merged: dict[str, Tensor] = {}
        for block in sums(sites, factors.tolist(), weights):
            write(merged, block, block.model(), sites)
        return merged, state

    def _weiszfeld(self, products: Tensor, portions: Tensor, sites: list[Update]) -> Tensor:
        """Return the coefficients of the geometric median over the sites' deltas; they sum to one."""
        lengths = products.diagonal().clamp(min=0).sqrt()
        typical = _median(lengths, portions)
        if len(sites) == 1 or typical == 0:
            # At least half of the weight did not move: staying has the smallest sum. (One site alone is its
            # own.)
            return portions if len(sites) == 1 else torch.zeros_like(portions)
        smooth = SMOOTHING * typical
        pulls = portions / lengths.clamp(min=smooth)
        now = pulls / pulls.sum()
        pull = torch.inf
        for _ in range(self.iterations):
            pulls = portions / lengths_from(products, now).clamp(min=smooth)
            after = pulls / pulls.sum()
            moved = after - now
            # The gradient of the sum of distances is the step times the sum of pulls.
            pull = float((moved @ products @ moved).clamp(min=0).sqrt() * pulls.sum())
            now = after
            if pull <= self.tolerance:
                return now
        raise RuleError(
            f"geometric_median for round {newest(sites)}: after {self.iterations} iterations the sites "
            f"still "
            f"pull by {pull:.2g}, tolerance is {self.tolerance:.2g}; a larger tolerance or more iterations "
            f"helps"
        )


def _median(values: Tensor, portions: Tensor) -> float:
    order = values.argsort(stable=True)
    reached = portions[order].cumsum(0)
    return float(values[order][int((reached < 0.5).sum())])
