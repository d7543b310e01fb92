"""FedAdam: the hub steps along the mean delta with Adam's step for each weight.

v <- beta2 v + (1 - beta2) delta^2.

Reddi et al.: Adaptive Federated Optimization, ICLR 2021, arXiv:2003.00295; departures: see `_adaptive`.
As in the paper, there is no bias correction: `start` keeps the first steps small.
"""

from __future__ import annotations

from torch import Tensor

from medfed.aggregation._adaptive import Adaptive
from medfed.aggregation._rule import Fraction


class FedAdam(Adaptive, frozen=True, tag="fedadam"):
    """Adam at the hub, for deltas whose size differs from weight to weight."""

    beta2: Fraction = 0.99

    def second_moment(self, moment: Tensor, delta: Tensor) -> Tensor:
        return moment.mul_(self.beta2).addcmul_(delta, delta, value=1 - self.beta2)
