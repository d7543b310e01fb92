"""FedProx: a pull towards the global model, so that sites with different data diverge less between merges.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020,
arXiv:1812.06127. Departure: the paper lets a site stop at an inexact solution; here each trains its E epochs.
"""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta
from torch import nn

from medfed.local_training._local import LocalMethod, LocalState
from medfed.local_training._weights import received_parameters
from medfed.wire.update import GlobalModel


class FedProx(LocalMethod, tag="fedprox", frozen=True):
    """Adds the gradient mu (w - w_global) of mu / 2 times the squared distance to the global model."""

    mu: Annotated[float, Meta(ge=0)] = 0.01

    is_data_free = True

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        return {"anchors": received_parameters(module, received)}

    @torch.no_grad()
    def gradient(self, module: nn.Module, state: LocalState) -> None:
        for name, parameter in module.named_parameters():
            if name in state["anchors"] and parameter.grad is not None:
                parameter.grad.add_(parameter - state["anchors"][name], alpha=self.mu)
