"""FedYogi: as FedAdam, with Yogi's second moment, v <- v - (1 - beta2) delta^2 sign(v - delta^2).

Reddi et al.: Adaptive Federated Optimization, ICLR 2021, arXiv:2003.00295; departures: see `_adaptive`. v
grows by at most (1 - beta2) delta^2 per round and shrinks by at most as much, whereas Adam's forgets at a
fixed rate. It can't fall below zero: it shrinks only where v > delta^2.
"""

from __future__ import annotations

from torch import Tensor

from medfed.aggregation._adaptive import Adaptive
from medfed.aggregation._rule import Fraction


class FedYogi(Adaptive, frozen=True, tag="fedyogi"):
    """Yogi at the hub: Adam whose second moment follows slowly, for sparse or noisy deltas."""

    beta2: Fraction = 0.99

    def second_moment(self, moment: Tensor, delta: Tensor) -> Tensor:
        squared = delta.square_()
        sign = (moment - squared).sign_()
        return moment.addcmul_(squared, sign, value=-(1 - self.beta2))
