"""FedBuff: updates are merged as soon as a few have come, and late ones weigh less.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: Federated Learning with Buffered Asynchronous
Aggregation, AISTATS 2022, arXiv:2106.06639: w <- w + eta / K sum d_k / sqrt(1 + staleness_k), where a delta's
staleness is how many merges happened since its site fetched the weights. As in the paper, the weights aren't
normalised again, so a buffer of late updates makes a shorter step. Departures: 1/K becomes the share of
examples in the buffer; batch norm's running statistics take no step longer than the mean's.

A site gets the newest model as soon as it has sent its update, and where that is still the one it trained
from, it waits for the next: it never trains twice from one model (in the paper it may). So with a buffer as
large as the study nobody is late, and this is FedAvg.

A site that answers twice within a buffer counts twice, once a round. The state counts merges, so that a
buffer in which every update is late is known to be. A delta is what its site learnt since the round it
answers: the hub must hold that round's weights (or the delta itself) until then, and hands the rule a delta
from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from medfed.aggregation._reduce import sums, write
from medfed.aggregation._rule import (
    AtLeastOne,
    NotNegative,
    Positive,
    Rule,
    State,
    carried,
    newest,
    shares,
    trained,
)
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class FedBuff(Rule, frozen=True, tag="fedbuff"):
    """Buffered asynchronous FedAvg: `buffer` updates are merged at a time, late ones with less weight."""

    buffer: AtLeastOne = 3
    learning_rate: Positive = 1.0
    staleness_power: NotNegative = 0.5

    asynchronous: ClassVar[bool] = True

    @property
    def enough(self) -> int:
        return self.buffer

    def init(self, weights: Weights) -> State:
        return {"clock": {"round": torch.zeros((), dtype=torch.int64)}}

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = _by_site_and_round(updates)
        now = max(int(carried(state, "clock", self)["round"]), newest(sites))
        portions = shares(sites)
        late = [
            share * (1 + now - update.round) ** -self.staleness_power
            for update, share in zip(sites, portions, strict=True)
        ]
        factors = [self.learning_rate * factor for factor in late]
        statistics = [min(1.0, self.learning_rate) * factor for factor in late]
        merged: dict[str, Tensor] = {}
        for block in sums(sites, factors, weights, statistics):
            write(merged, block, block.model(), sites)
        return merged, {"clock": {"round": torch.tensor(now + 1)}}


def _by_site_and_round(updates: Iterable[Update]) -> list[Update]:
    ordered = sorted(updates, key=lambda update: (update.site, update.round))
    if not ordered:
        raise RuleError("a merge without an update: no site answered this round")
    for one, two in pairwise(ordered):
        if (one.site, one.round) == (two.site, two.round):
            raise RuleError(
                f"two updates of site '{one.site}' for round {one.round}; one a round can be merged"
            )
    return trained(ordered)
