"""Norm bound: FedAvg of deltas that are scaled down to a maximum length.

Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?, 2019, arXiv:1911.07963: a delta
longer than M is scaled to M, then all are averaged. It bounds what one site can do in a round, and does not
withstand many attackers. Departures: the mean is weighted by examples, and M is the median length of the
round's deltas unless set, because a useful M depends on network, learning rate and epoch. It makes two passes
over the updates, both streamed.
"""

from __future__ import annotations

from statistics import median_low

from medfed.aggregation._reduce import add_weighted_deltas, squared_norms
from medfed.aggregation._rule import Merged, Positive, Rule, State, Updates
from medfed.aggregation._updates import shares, validated_updates
from medfed.wire.weights import Weights


class NormBound(Rule, frozen=True, tag="norm_bound"):
    """FedAvg of deltas no longer than `longest`, or than the round's median length."""

    longest: Positive | None = None

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        lengths = [square**0.5 for square in squared_norms(sites, weights)]
        bound = median_low(lengths) if self.longest is None else self.longest
        factors = [
            share if length <= bound else share * (bound / length)
            for share, length in zip(shares(sites), lengths, strict=True)
        ]
        return add_weighted_deltas(sites, factors, weights), state
