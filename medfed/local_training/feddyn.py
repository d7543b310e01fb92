"""FedDyn's site: a regulariser that moves with the rounds, so that all sites' minima become the joint one.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization,
ICLR 2021, arXiv:2111.04263, algorithm 1: a site minimises L_k(w) - <g_k, w> + alpha / 2 |w - x|^2 from the
received x, then g_k <- g_k - alpha (w_k - x). The hub's part is aggregation/feddyn.py; a study names both.
Departure: a site takes its E epochs of steps and not to the minimum, as the authors' own code does; so g_k
approaches the site's gradient over the rounds.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import nn

from medfed.local_training._local import Local, LocalState
from medfed.local_training._personal_model import at_rest, near
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

GRADIENT, ANCHORS = "gradient", "anchors"


class FedDyn(Local, tag="feddyn", frozen=True):
    """Adds alpha (w - w_global) - g_k to every gradient, g_k what the earlier rounds taught of
    this site's own pull.

    `alpha`: the paper uses 0.001 to 0.1; large ones slow a site, small ones let it drift.
    """

    alpha: Annotated[float, Meta(gt=0)] = 0.01

    rules: ClassVar[tuple[str, ...]] = ("feddyn",)

    @property
    def needs_no_cases(self) -> bool:
        return True

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        anchors = {
            name: parameter.detach().clone()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and name in received.weights
        }
        known = state.get(GRADIENT) or {name: torch.zeros_like(tensor) for name, tensor in anchors.items()}
        return {GRADIENT: near(known, module), ANCHORS: anchors}

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
        return {GRADIENT: at_rest(gradient)}, {}
