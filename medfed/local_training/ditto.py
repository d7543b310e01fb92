"""Ditto: beside the federated model each hospital trains its own, pulled towards the federated one.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021,
arXiv:2012.04221, algorithm 1: v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w)), w the round's received
model. Departures: the step is the site's own optimiser's, whatever it is, with moments of its own, and is
taken on each batch that the federated model sees. The federated part is untouched: it ends with the same
bits as without Ditto.
"""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta
from torch import nn

from medfed.local_training._local import Local, LocalState, Step
from medfed.local_training._personal_model import added, all_weights, at_rest, descend, gradients, near
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

PERSONAL, MOMENTS, ANCHORS, GRADIENTS = "personal", "moments", "anchors", "gradients"


class Ditto(Local, tag="ditto", frozen=True):
    """Trains a personal model in each hospital beside the federated one, `pull` (lambda) towards it.

    With `pull: 0` it is the hospital's own model; the larger, the nearer the federated one.
    Each step costs twice.
    """

    pull: Annotated[float, Meta(ge=0)] = 0.1

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        personal = near(state[PERSONAL], module) if PERSONAL in state else all_weights(module)
        anchors = {
            name: parameter.detach().clone()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and name in received.weights
        }
        moments = near(state.get(MOMENTS, {}), module)
        return {PERSONAL: personal, MOMENTS: moments, ANCHORS: anchors, GRADIENTS: {}}

    @torch.no_grad()
    def step(self, step: Step, state: LocalState) -> LocalState:
        personal, anchors = dict(state[PERSONAL]), state[ANCHORS]
        with torch.enable_grad():
            found = gradients(step, personal)
        for name, gradient in found.items():
            if name in anchors:
                gradient.add_(personal[name] - anchors[name], alpha=self.pull * step.part)
        found = added(state[GRADIENTS], found)
        if not step.ends:
            return {**state, GRADIENTS: found}
        return {**state, MOMENTS: descend(step, personal, found, state[MOMENTS]), GRADIENTS: {}}

    def finish(
        self, module: nn.Module, received: GlobalModel, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        return {PERSONAL: at_rest(state[PERSONAL]), MOMENTS: at_rest(state[MOMENTS])}, {}

    def personal(self, module: nn.Module, state: LocalState) -> Weights | None:
        return state[PERSONAL]
