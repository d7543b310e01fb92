"""FedDyn's site: a regulariser updated each round, so that the sites' minima converge to the joint one.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization,
ICLR 2021, arXiv:2111.04263, algorithm 1: a site minimises L_k(w) - <g_k, w> + alpha / 2 |w - x|^2 from the
received x, then g_k <- g_k - alpha (w_k - x). The hub's half is aggregation/feddyn.py; a study names both.
Departure: a site trains for its E epochs and not to the minimum, as in the authors' code; so g_k approaches
the site's gradient over the rounds.
"""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta
from torch import nn

from medfed.local_training._local import LocalMethod, LocalState
from medfed.local_training._weights import received_parameters, to_cpu, to_device
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

GRADIENT, ANCHORS = "gradient", "anchors"


class FedDyn(LocalMethod, tag="feddyn", frozen=True):
    """Adds alpha (w - w_global) - g_k to every gradient, where g_k accumulates over this site's rounds.

    The paper uses an `alpha` of 0.001 to 0.1; a large one slows a site down, a small one lets it drift.
    """

    alpha: Annotated[float, Meta(gt=0)] = 0.01

    rules = ("feddyn",)

    is_data_free = True

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        anchors = received_parameters(module, received)
        accumulated = state.get(GRADIENT) or {
            name: torch.zeros_like(tensor) for name, tensor in anchors.items()
        }
        return {GRADIENT: to_device(accumulated, module), ANCHORS: anchors}

    @torch.no_grad()
    def gradient(self, module: nn.Module, state: LocalState) -> None:
        for name, parameter in module.named_parameters():
            if parameter.grad is not None and name in state[ANCHORS]:
                parameter.grad.add_(parameter - state[ANCHORS][name], alpha=self.alpha)
                parameter.grad.sub_(state[GRADIENT][name])

    @torch.no_grad()
    def finish(
        self, module: nn.Module, received: GlobalModel, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        parameters = dict(module.named_parameters())
        gradient = {
            name: tensor - self.alpha * (parameters[name] - state[ANCHORS][name])
            for name, tensor in state[GRADIENT].items()
        }
        return {GRADIENT: to_cpu(gradient)}, {}
