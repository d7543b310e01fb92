"""Krum: the model of the one site that lies closest to its neighbours.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent, NeurIPS 2017, arXiv:1703.02757: a site's score is the sum of squared distances to its n - f - 2
nearest others; n must be at least 2f + 3. The paper assumes sites whose data are alike: where hospitals
differ, the one that is chosen is one hospital's model, and `mixing` (see `_mixing`) is for them. Departures:
models, where the paper takes gradients; equal scores go to the first site by name. Two passes over the
updates, the first with all sites' tensors of one name in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from medfed.aggregation._distances import squared_distances
from medfed.aggregation._krum import best, factors_of, mixed_if
from medfed.aggregation._reduce import sums, write
from medfed.aggregation._rule import Count, Rule, State, at_least, by_site
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class Krum(Rule, frozen=True, tag="krum"):
    """The model of the one site closest to its neighbours; withstands `attackers` of 2 `attackers` + 3.

    With `mixing` each site's model is first replaced by the mean of those nearest to it.
    """

    attackers: Count = 1
    mixing: bool = False

    needs_each_update: ClassVar[bool] = True

    def fewest_sites(self) -> int:
        return 2 * self.attackers + 3

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        at_least(sites, self.fewest_sites(), self, f"2 * {self.attackers} attackers + 3")
        distances, table = mixed_if(self.mixing, squared_distances(sites, weights), self.attackers)
        best_one = best(distances, range(len(sites)), len(sites) - self.attackers - 2, count=1)
        factors = factors_of(best_one, table)
        chosen = [sites[i] for i in factors]
        merged: dict[str, Tensor] = {}
        for block in sums(chosen, list(factors.values()), weights):
            write(merged, block, block.model(), chosen)
        return merged, state
