"""FedDyn's hub: the mean of the sites' models plus the sum of all movements so far.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization,
ICLR 2021, arXiv:2111.04263, algorithm 1: h <- h - alpha / m sum (w_k - x), x <- mean w_k - h / alpha. The
state holds s = -h / alpha, the sum of the rounds' movements, so that only the sites need alpha
(local_training/feddyn.py): s <- s + |P| / m mean (w_k - x), x <- mean w_k + s.

Departures. Means are weighted by examples, m is `sites`, the study's number of sites, and |P| the number that
answered; the fixed point is then the minimum of the joint loss of all examples. Batch norm's running
statistics are averaged, because a sum of their movements would leave the sites' range.
"""

from __future__ import annotations

from torch import Tensor

from medfed.aggregation._reduce import stepped_blocks, write_block
from medfed.aggregation._rule import AtLeastOne, Merged, Rule, State, Updates
from medfed.aggregation._state import state_block, state_dtype, state_group, zeros_for_state
from medfed.aggregation._updates import participation, shares, validated_updates
from medfed.wire.weights import Weights

MOVED = "moved"


class FedDyn(Rule, frozen=True, tag="feddyn"):
    """Mean of the sites' models plus the sum of all rounds' movements; needs local method feddyn.

    `sites` is the number of sites in the whole study; None means that all of them answer each round.
    """

    sites: AtLeastOne | None = None

    needs_local = ("feddyn",)

    @property
    def supports_secure_aggregation(self) -> bool:
        # From a sum the hub cannot tell how many sites answered.
        return self.sites is None

    def init(self, weights: Weights) -> State:
        return {MOVED: zeros_for_state(weights)}

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        answered = participation(sites, self.sites, self)
        before = state_group(state, MOVED, self)
        merged: dict[str, Tensor] = {}
        moved: dict[str, Tensor] = {}
        for block in stepped_blocks(sites, shares(sites), weights, merged):
            delta = block.delta()
            total = state_block(before, block).add_(delta, alpha=answered)
            write_block(moved, block, total, sites, state_dtype(block.tensor.dtype))
            write_block(merged, block, block.weights().add_(delta).add_(total), sites)
        return merged, {MOVED: moved}
