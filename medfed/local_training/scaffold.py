"""SCAFFOLD's site: corrects every step by the difference between this site's gradients and all sites'.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning, ICML 2020, arXiv:1910.06378, algorithm 1, lines 10 to 13. Option I: c_k+ is the gradient at the
received x, over all training cases; option II: c_k+ = c_k - c + (x - y_k) / (K eta). The hub's half is
aggregation/scaffold.py; a study names both. The paper's steps are plain SGD; with momentum or Adam, (x - y_k)
/ (K eta) is not a mean gradient, and option II loses its meaning. Departure: option I's gradient is the
mean over the batches of one pass, in training mode.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from medfed.local_training._local import LocalMethod, LocalState
from medfed.local_training._train_pass import TrainEvaluator
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights, as_real

CONTROL = "control"
FRESH = "fresh"


class Scaffold(LocalMethod, tag="scaffold", frozen=True):
    """Adds c - c_k to every gradient, so that sites with different data do not drift apart; needs plain SGD.

    `option` is the paper's: II updates c_k from the round's own steps; I from a pass over the training cases
    before them, which costs that pass and is more stable.
    """

    option: Literal["I", "II"] = "II"

    sends = (CONTROL,)
    rules = ("scaffold",)
    one_optimiser = True

    @property
    def is_data_free(self) -> bool:
        return self.option == "II"

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        names = [name for name in trained if name in received.weights]
        own = state.get("own") or {name: torch.zeros_like(received.weights[name]) for name in names}
        hub = received.groups.get(CONTROL, {})
        return {"own": own, "hub": {name: hub[name].to(own[name].dtype) for name in names if name in hub}}

    def evaluate_train(self, evaluator: TrainEvaluator, state: LocalState) -> LocalState:
        return {**state, FRESH: evaluator.gradient()} if self.option == "I" else state

    @torch.no_grad()
    def gradient(self, module: nn.Module, state: LocalState) -> None:
        for name, parameter in module.named_parameters():
            if parameter.grad is not None and name in state["own"]:
                correction = state["hub"].get(name, 0) - state["own"][name]
                as_real(parameter.grad).add_(correction.to(parameter.device))

    @torch.no_grad()
    def finish(
        self, module: nn.Module, received: GlobalModel, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        if not steps or not rate:
            return state, {CONTROL: {name: torch.zeros_like(tensor) for name, tensor in state["own"].items()}}
        if self.option == "I":
            own = {
                name: as_real(state[FRESH][name]).to(tensor.dtype) for name, tensor in state["own"].items()
            }
            change = {name: own[name] - tensor for name, tensor in state["own"].items()}
            return {"own": own, "hub": state["hub"]}, {CONTROL: change}
        parameters = dict(module.named_parameters())
        change = {
            name: (received.weights[name] - as_real(parameters[name].detach().cpu())) / (steps * rate)
            - state["hub"].get(name, 0)
            for name in state["own"]
        }
        own = {name: tensor + change[name] for name, tensor in state["own"].items()}
        return {**state, "own": own}, {CONTROL: change}
