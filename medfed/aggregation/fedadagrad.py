"""FedAdagrad: the hub steps along the mean delta with Adagrad's step for each weight, v <- v + delta^2.

Reddi et al.: Adaptive Federated Optimization, ICLR 2021, arXiv:2003.00295; departures: see `_adaptive`.
The paper sets beta1 to 0 for Adagrad, and so does the default here. The steps shrink with the root of the
number of rounds, so the default learning rate is 0.1, ten times the others' (as in Flower; with 0.01 a weight
moves by 0.05 in 8 rounds, less than a hospital's own training moves it in one).
"""

from __future__ import annotations

from torch import Tensor

from medfed.aggregation._adaptive import Adaptive
from medfed.aggregation._rule import Fraction, Positive


class FedAdagrad(Adaptive, frozen=True, tag="fedadagrad"):
    """Adagrad at the hub: a weight's steps shrink as its squared deltas accumulate."""

    learning_rate: Positive = 0.1
    beta1: Fraction = 0.0

    def second_moment(self, moment: Tensor, delta: Tensor) -> Tensor:
        return moment.addcmul_(delta, delta)
