"""Norm bound: FedAvg of deltas that are shortened to a longest length.

Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?, 2019, arXiv:1911.07963: a delta
longer than M is scaled to M, then all are averaged. It bounds what one site can do in a round, and does not
withstand many sites. Departures: the mean is weighted by examples, and M is the median length of the round's
deltas unless set, since a useful M depends on network, learning rate and epoch. Two passes over the updates,
both streamed.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median_low
from typing import ClassVar

from torch import Tensor

from medfed.aggregation._reduce import squared_norms, sums, write
from medfed.aggregation._rule import Positive, Rule, State, by_site, shares
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class NormBound(Rule, frozen=True, tag="norm_bound"):
    """FedAvg of deltas no longer than `longest`, or than the round's median length."""

    longest: Positive | None = None

    needs_each_update: ClassVar[bool] = True

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        lengths = [square**0.5 for square in squared_norms(sites, weights)]
        bound = median_low(lengths) if self.longest is None else self.longest
        factors = [
            share if length <= bound else share * (bound / length)
            for share, length in zip(shares(sites), lengths, strict=True)
        ]
        merged: dict[str, Tensor] = {}
        for block in sums(sites, factors, weights):
            write(merged, block, block.model(), sites)
        return merged, state
