"""FedAvg: the mean of the sites' models, weighted by their training examples.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data, AISTATS 2017, arXiv:1602.05629. Departure: the paper divides by the n_k of all clients of
a round; here a site that did not answer has no weight, and the others' weights still sum to one.
"""

from __future__ import annotations

from medfed.aggregation._reduce import add_weighted_deltas
from medfed.aggregation._rule import Merged, Rule, State, Updates
from medfed.aggregation._updates import shares, validated_updates
from medfed.wire.weights import Weights


class FedAvg(Rule, frozen=True, tag="fedavg"):
    """Mean of the sites' models, weighted by training examples."""

    supports_secure_aggregation = True

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        return add_weighted_deltas(sites, shares(sites), weights), state
