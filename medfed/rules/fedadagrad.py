"""FedAdagrad: the hub steps along the mean delta with Adagrad's step for each weight, v <- v + delta^2.

Reddi et al.: Adaptive Federated Optimization, ICLR 2021, arXiv:2003.00295; departures stand in `_adaptive`.
The paper sets beta1 to 0 for Adagrad, and so does the default here.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from medfed.rules._adaptive import Adaptive, adaptive_merge
from medfed.rules._rule import Fraction, State
from medfed.update import Update
from medfed.weights import Weights


class FedAdagrad(Adaptive, frozen=True, tag="fedadagrad"):
    """Adagrad at the hub: a weight's steps shrink as its deltas add up."""

    beta1: Fraction = 0.0

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        def second(moment: Tensor, squared: Tensor) -> Tensor:
            return moment.add_(squared)

        return adaptive_merge(self, updates, state, weights, second)
