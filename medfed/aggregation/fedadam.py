"""FedAdam: the hub steps along the mean delta with Adam's step for each weight.

v <- beta2 v + (1 - beta2) delta^2.

Reddi et al.: Adaptive Federated Optimization, ICLR 2021, arXiv:2003.00295; departures: see `_adaptive`.
As in the paper, there is no bias correction: `start` keeps the first steps small.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from medfed.aggregation._adaptive import Adaptive, adaptive_merge
from medfed.aggregation._rule import Fraction, Merged, State
from medfed.wire.update import Update
from medfed.wire.weights import Weights


class FedAdam(Adaptive, frozen=True, tag="fedadam"):
    """Adam at the hub, for deltas whose size differs from weight to weight."""

    beta2: Fraction = 0.99

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> Merged:
        def second(moment: Tensor, delta: Tensor) -> Tensor:
            return moment.mul_(self.beta2).addcmul_(delta, delta, value=1 - self.beta2)

        return adaptive_merge(self, updates, state, weights, second)
