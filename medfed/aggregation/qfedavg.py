"""q-FedAvg: gives more weight to sites on which the global model does worse, so that sites end up more alike.

Li, Sanjabi, Beirami, Smith: Fair Resource Allocation in Federated Learning, ICLR 2020, arXiv:1905.10497,
algorithm 2: with F_k the global model's loss at site k before training, L = 1 / learning rate and d_k the
site's delta,

    w <- w + sum p_k F_k^q L d_k / sum p_k (q F_k^(q-1) |L d_k|^2 + L F_k^q)

q = 0 is FedAvg; larger q is fairer. Departures: p_k is the share of examples, the paper draws sites with that
probability; losses are relative to the largest, which changes nothing and keeps F^q in range; a loss of 0
counts as 1e-10 of the largest, as in the authors' code.

The first term of the denominator bounds how fast the gradient of F^(q+1) can change, for sites that took
steps of plain SGD: L d_k is then a sum of gradients. The size of Adam's steps is the learning rate, whatever
the gradient, so L d_k is about the root of the number of weights, and the step about a ten-thousandth of
FedAvg's (quickstart: Dice 0.03, FedAvg 0.73). So this term is omitted unless `learning_rate` is set: w <- w +
sum p_k F_k^q d_k / sum p_k F_k^q, the formula's limit as the learning rate grows. With the term there are two
passes over the updates, both streamed, else one.
"""

from __future__ import annotations

from medfed.aggregation._reduce import add_weighted_deltas, squared_norms
from medfed.aggregation._rule import Merged, NotNegative, Positive, Rule, State, Updates
from medfed.aggregation._updates import describe, required_scalar, shares, validated_updates
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights

# The smallest loss, as a share of the round's largest, so that F^(q-1) exists for q below 1.
MIN_RELATIVE_LOSS = 1e-10


class QFedAvg(Rule, frozen=True, tag="qfedavg"):
    """FedAvg that weights sites by the q-th power of the global model's loss there, for fairness.

    `learning_rate` is the sites' own (the paper's 1 / L), to be set if they train with plain SGD; None means
    the weighted mean without the paper's bound. `loss` names the scalar in which a site sends the global
    model's mean loss on its training cases, before training.
    """

    q: NotNegative = 1.0
    learning_rate: Positive | None = None
    loss: str = "train/loss_before"

    @property
    def needs_scalars(self) -> tuple[str, ...]:
        return (self.loss,)

    @property
    def multiplies_by(self) -> tuple[str, ...]:
        return (self.loss,) if self.q else ()

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        factors = self._factors(sites, weights)
        return add_weighted_deltas(sites, factors, weights), state

    def _factors(self, sites: list[Update], weights: Weights) -> list[float]:
        losses = [self._loss(update) for update in sites]
        largest = max(losses)
        portions = shares(sites)
        if largest == 0 or self.q == 0:
            # All sites weigh equally per example: FedAvg.
            return portions
        relative = [max(loss / largest, MIN_RELATIVE_LOSS) for loss in losses]
        powers = [share * loss**self.q for share, loss in zip(portions, relative, strict=True)]
        total = sum(powers)
        if self.learning_rate is not None:
            # |L d_k|^2 / L, with F in units of the largest loss, is |d_k|^2 / (learning rate * largest).
            unit = self.learning_rate * largest
            total += sum(
                self.q * power * square / (loss * unit)
                for power, loss, square in zip(powers, relative, squared_norms(sites, weights), strict=True)
            )
        return [power / total for power in powers]

    def check(self, update: Update) -> None:
        self._loss(update)

    def _loss(self, update: Update) -> float:
        loss = required_scalar(
            update, self.loss, "is the global model's loss there, which qfedavg weights by"
        )
        if loss < 0:
            raise RuleError(
                f"{describe(update)}: scalar '{self.loss}' is {loss}; qfedavg needs a loss of at least 0"
            )
        return loss
