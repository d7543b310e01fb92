"""FedNova: each site's delta is divided by its own number of local steps before the mean.

Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization, NeurIPS 2020, arXiv:2007.07481: w <- w + tau_eff sum p_k delta_k / |a_k|, tau_eff = sum p_k
|a_k|. If sites take different numbers of steps (different epochs, batch sizes or numbers of cases), FedAvg
minimises another objective than the stated one, because sites with more steps pull harder; FedNova does not.
|a_k| is the number of steps for plain SGD, and the paper's sums for momentum and for a proximal term.
Departures: p_k is normalised over the sites that answered; batch norm's running statistics are averaged as
they are, because they don't grow with the number of steps. With Adam at the sites |a_k| is only approximately
the number of steps.
"""

from __future__ import annotations

import torch

from medfed.aggregation._reduce import add_weighted_deltas
from medfed.aggregation._rule import Fraction, Merged, Rule, State, Updates
from medfed.aggregation._updates import describe, required_scalar, shares, validated_updates
from medfed.errors import RuleError
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class FedNova(Rule, frozen=True, tag="fednova"):
    """Mean of deltas per local step, for sites that take different numbers of steps.

    `steps` names the scalar in which a site sends its number of steps. `momentum` is that of the sites'
    optimiser; `decay` is their learning rate times the proximal term's mu.
    """

    steps: str = "train/steps"
    momentum: Fraction = 0.0
    decay: Fraction = 0.0

    @property
    def needs_scalars(self) -> tuple[str, ...]:
        return (self.steps,)

    @property
    def multiplies_by(self) -> tuple[str, ...]:
        return (self.steps,)  # by the mean number of steps

    @property
    def divides_by(self) -> tuple[str, ...]:
        return (self.steps,)

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        sites = validated_updates(updates)
        portions = shares(sites)
        lengths = [self._length(update) for update in sites]
        effective = sum(share * length for share, length in zip(portions, lengths, strict=True))
        factors = [share * (effective / length) for share, length in zip(portions, lengths, strict=True)]
        return add_weighted_deltas(sites, factors, weights, statistics=portions), state

    def check(self, update: Update) -> None:
        self._length(update)

    def _length(self, update: Update) -> float:
        """Return |a_k|, how far its steps would carry a site along a constant gradient, in steps."""
        steps = required_scalar(update, self.steps, "counts its local steps, which fednova divides by")
        if steps < 1 or steps != int(steps):
            raise RuleError(
                f"{describe(update)}: scalar '{self.steps}' is {steps}; expected a whole number of at least 1"
            )
        if self.momentum == 0 and self.decay == 0:
            return steps
        # In units of the learning rate, along a constant gradient of 1: velocity <- rho velocity + 1 - decay
        # * moved, moved <- moved + velocity. A matrix power, because a site may state any number of steps.
        rho, decay = self.momentum, self.decay
        one_step = torch.tensor([[1 - decay, rho, 1], [-decay, rho, 1], [0, 0, 1]], dtype=torch.float64)
        return float(torch.linalg.matrix_power(one_step, int(steps))[0, 2])
