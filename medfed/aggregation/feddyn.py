"""FedDyn's hub: the mean of the sites' models, plus all that they have moved so far.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization,
ICLR 2021, arXiv:2111.04263, algorithm 1: h <- h - alpha / m sum (w_k - x), x <- mean w_k - h / alpha. The
state holds s = -h / alpha, which is the sum of the rounds' movements, so that alpha is the sites' alone
(local_training/feddyn.py): s <- s + |P| / m mean (w_k - x), x <- mean w_k + s.

Departures. Means are weighted by examples, m is `sites`, the study's number of sites, and |P| those that
answered; the fixed point is then the minimum of the examples' joint loss. Batch norm's running statistics are
averaged, for a sum of their movements would leave the sites' range.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from medfed.aggregation._reduce import part_of, sums, write, write_as
from medfed.aggregation._rule import (
    AtLeastOne,
    Rule,
    State,
    by_site,
    carried,
    is_running_statistic,
    newest,
    shares,
    state_dtype,
    zeros_for_state,
)
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights

MOVED = "moved"


class FedDyn(Rule, frozen=True, tag="feddyn"):
    """Mean of the sites' models plus the sum of all rounds' movements, for sites that
    train with local feddyn.

    `sites` is how many the whole study has; None says that all of them answer each round.
    """

    sites: AtLeastOne | None = None

    needs_local: ClassVar[tuple[str, ...]] = ("feddyn",)

    def init(self, weights: Weights) -> State:
        return {MOVED: zeros_for_state(weights)}

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        part = 1.0 if self.sites is None else len(sites) / self.sites
        if part > 1:
            raise RuleError(
                f"feddyn for round {newest(sites)}: {len(sites)} sites answered, the rule says that the study has "
                f"{self.sites}; set rule.sites to the number of sites of the study"
            )
        before = carried(state, MOVED, self)
        merged: dict[str, Tensor] = {}
        moved: dict[str, Tensor] = {}
        for block in sums(sites, shares(sites), weights):
            if is_running_statistic(block.name):
                write(merged, block, block.model(), sites)
                continue
            delta = block.delta()
            total = part_of(before, block).add_(delta, alpha=part)
            write_as(moved, block, total, sites, state_dtype(block.tensor.dtype))
            write(merged, block, block.weights().add_(delta).add_(total), sites)
        return merged, {MOVED: moved}
