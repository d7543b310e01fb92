"""q-FedAvg: sites on which the global model does worse weigh more, so that sites end up more alike.

Li, Sanjabi, Beirami, Smith: Fair Resource Allocation in Federated Learning, ICLR 2020, arXiv:1905.10497,
algorithm 2: with F_k the global model's loss at site k before training, L = 1 / learning rate and d_k the
site's delta,

    w <- w + sum p_k F_k^q L d_k / sum p_k (q F_k^(q-1) |L d_k|^2 + L F_k^q)

q = 0 is FedAvg; larger q is fairer. Departures: p_k is the share of examples, where the paper draws sites
with that probability; losses are taken relative to the largest, which changes nothing and keeps F^q in range;
a loss of 0 counts as 1e-10 of the largest, as in the authors' code.

The first term below the line bounds how fast F^(q+1)'s gradient can change, for sites that took steps of
plain SGD: L d_k is then a sum of gradients. Adam's steps have the learning rate's size whatever the
gradient's, L d_k is then about the root of the number of weights, and the step about a ten-thousandth of
FedAvg's (quickstart: Dice 0.03 where FedAvg reaches 0.73). So that term is left out unless `learning_rate` is
set: w <- w + sum p_k F_k^q d_k / sum p_k F_k^q, which the formula nears as the learning rate grows. With it,
there are two passes over the updates, both streamed, else one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from medfed.aggregation._reduce import squared_norms, sums, write
from medfed.aggregation._rule import NotNegative, Positive, Rule, State, by_site, scalar, shares, who
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights

# Of the round's largest loss: a smaller one counts as this much, so that F^(q-1) exists for q below 1.
LEAST_LOSS = 1e-10


class QFedAvg(Rule, frozen=True, tag="qfedavg"):
    """FedAvg that weighs sites by the q-th power of the global model's loss there, for fairness.

    `learning_rate` is the sites' own (the paper's 1 / L), to be set where they train with plain SGD; None is
    the weighted mean that is left without the paper's bound. `loss` names the scalar by which a site says the
    global model's mean loss on its training cases, before training.
    """

    q: NotNegative = 1.0
    learning_rate: Positive | None = None
    loss: str = "train/loss_before"

    needs_each_update: ClassVar[bool] = True

    @property
    def needs_scalars(self) -> tuple[str, ...]:
        return (self.loss,)

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        sites = by_site(updates)
        factors = self._factors(sites, weights)
        merged: dict[str, Tensor] = {}
        for block in sums(sites, factors, weights):
            write(merged, block, block.model(), sites)
        return merged, state

    def _factors(self, sites: list[Update], weights: Weights) -> list[float]:
        losses = [self._loss(update) for update in sites]
        largest = max(losses)
        portions = shares(sites)
        if largest == 0 or self.q == 0:
            # No site is worse off than another: FedAvg.
            return portions
        relative = [max(loss / largest, LEAST_LOSS) for loss in losses]
        powers = [share * loss**self.q for share, loss in zip(portions, relative, strict=True)]
        total = sum(powers)
        if self.learning_rate is not None:
            # L d_k squared over L, and F in units of the largest, leaves |d_k|^2 / (learning rate
            # * largest) here.
            unit = self.learning_rate * largest
            total += sum(
                self.q * power * square / (loss * unit)
                for power, loss, square in zip(powers, relative, squared_norms(sites, weights), strict=True)
            )
        return [power / total for power in powers]

    def _loss(self, update: Update) -> float:
        loss = scalar(update, self.loss, "is the global model's loss there, by which qfedavg weighs")
        if loss < 0:
            raise RuleError(
                f"{who(update)}: scalar '{self.loss}' is {loss}; qfedavg needs a loss of at least 0"
            )
        return loss
