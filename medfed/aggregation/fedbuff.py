"""FedBuff: the hub merges as soon as a few updates have arrived, and late ones weigh less.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: Federated Learning with Buffered Asynchronous
Aggregation, AISTATS 2022, arXiv:2106.06639: w <- w + eta / K sum d_k / sqrt(1 + staleness_k), where a delta's
staleness is the number of merges since its site fetched the weights. As in the paper, the factors are not
normalised again, so a buffer of late updates makes a shorter step. Departures: 1/K becomes the share of
examples in the buffer; batch norm's running statistics take no step longer than the mean's.

A site gets the newest model as soon as it has sent its update. If that is still the model it trained from,
the site waits for the next one: it never trains twice from one model (in the paper it may). So with a buffer
as large as the study no update is late, and the rule is FedAvg.

A site that answers twice within a buffer counts twice, once per round. The state counts merges, because the
updates of a buffer may all be late. A delta is what its site learnt since the round it answers: the hub must
keep that round's weights (or the delta itself) until then, and gives the rule a delta from them.
"""

from __future__ import annotations

import torch

from medfed.aggregation._reduce import add_weighted_deltas
from medfed.aggregation._rule import AtLeastOne, Merged, NotNegative, Positive, Rule, State, Updates
from medfed.aggregation._state import state_group
from medfed.aggregation._updates import newest_round, shares, validated_updates
from medfed.wire.weights import Weights


class FedBuff(Rule, frozen=True, tag="fedbuff"):
    """Buffered asynchronous FedAvg: merges `buffer` updates at a time, late ones with less weight."""

    buffer: AtLeastOne = 3
    learning_rate: Positive = 1.0
    staleness_power: NotNegative = 0.5

    asynchronous = True

    @property
    def buffer_size(self) -> int:
        return self.buffer

    def init(self, weights: Weights) -> State:
        return {"clock": {"round": torch.zeros((), dtype=torch.int64)}}

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates, asynchronous=True)
        now = max(int(state_group(state, "clock", self)["round"]), newest_round(sites))
        portions = shares(sites)
        late = [
            share * (1 + now - update.round) ** -self.staleness_power
            for update, share in zip(sites, portions, strict=True)
        ]
        factors = [self.learning_rate * factor for factor in late]
        statistics = [min(1.0, self.learning_rate) * factor for factor in late]
        return add_weighted_deltas(sites, factors, weights, statistics), {
            "clock": {"round": torch.tensor(now + 1)}
        }
