"""Krum: the model of the one site that lies closest to its neighbours.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent, NeurIPS 2017, arXiv:1703.02757: a site's score is the sum of squared distances to its n - f - 2
nearest others; n must be at least 2f + 3. The paper assumes sites with similar data: if hospitals differ, the
selected model is one hospital's, and `mixing` (see `_mixing`) is for them. Departures: the rule selects
models, the paper gradients; of equal scores the first site by name wins. It makes two passes over the
updates, the first with all sites' tensors of one name in memory.
"""

from __future__ import annotations

from medfed.aggregation._krum import krum_mean
from medfed.aggregation._rule import Count, Merged, Rule, State, Updates
from medfed.aggregation._updates import require_sites, validated_updates
from medfed.wire.weights import Weights


class Krum(Rule, frozen=True, tag="krum"):
    """The model of the one site closest to its neighbours; withstands `attackers` of 2 `attackers` + 3.

    With `mixing` each site's model is first replaced by the mean of the models nearest to it.
    """

    attackers: Count = 1
    mixing: bool = False

    @property
    def min_sites(self) -> int:
        return 2 * self.attackers + 3

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        require_sites(sites, self.min_sites, self, f"2 * {self.attackers} attackers + 3")
        return krum_mean(sites, weights, self.attackers, self.mixing, keep=1), state
