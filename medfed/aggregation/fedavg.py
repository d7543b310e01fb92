"""FedAvg: the mean of the sites' models, weighted by their training examples.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from
Decentralized Data, AISTATS 2017, arXiv:1602.05629. Departure: the paper weighs by n_k over all clients of a
round; here a site that did not answer has no weight and the others' weights still sum to one.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from medfed.aggregation._reduce import sums, write
from medfed.aggregation._rule import Rule, State, by_site, shares
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class FedAvg(Rule, frozen=True, tag="fedavg"):
    """Mean of the sites' models, weighted by training examples."""

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        merged: dict[str, Tensor] = {}
        for block in sums(sites, shares(sites), weights):
            write(merged, block, block.model(), sites)
        return merged, state
