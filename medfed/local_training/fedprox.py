"""FedProx: a pull towards the global model, so that sites with unlike data don't run apart between merges.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020,
arXiv:1812.06127. Departure: the paper lets a site stop at an inexact solution; here each trains its E epochs.
"""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta
from torch import nn

from medfed.local_training._local import Local, LocalState
from medfed.wire.update import GlobalModel


class FedProx(Local, tag="fedprox", frozen=True):
    """Adds mu / 2 times the squared distance to the global model to the loss, by its gradient
    mu (w - w_global).
    """

    mu: Annotated[float, Meta(ge=0)] = 0.01

    @property
    def needs_no_cases(self) -> bool:
        return True

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        anchors = {
            name: parameter.detach().clone()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and name in received.weights
        }
        return {"anchors": anchors}

    @torch.no_grad()
    def gradient(self, module: nn.Module, state: LocalState) -> None:
        for name, parameter in module.named_parameters():
            if name in state["anchors"] and parameter.grad is not None:
                parameter.grad.add_(parameter - state["anchors"][name], alpha=self.mu)
