"""Ditto: each hospital also trains a personal model, pulled towards the federated one.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021,
arXiv:2012.04221, algorithm 1: v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w)), w the round's received
model. Departures: the step is that of the site's own optimiser, with separate moments, on each batch that the
federated model sees. The federated part is unchanged: it ends with the same bits as without Ditto.
"""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta
from torch import nn

from medfed.local_training._local import LocalMethod, LocalState
from medfed.local_training._personal_model import add_gradients, gradients, optimizer_step
from medfed.local_training._step import Step
from medfed.local_training._weights import all_weights, received_parameters, to_cpu, to_device
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

PERSONAL, MOMENTS, ANCHORS, GRADIENTS = "personal", "moments", "anchors", "gradients"


class Ditto(LocalMethod, tag="ditto", frozen=True):
    """Also trains a personal model in each hospital, with a `pull` (lambda) towards the federated one.

    With `pull: 0` it is trained on the hospital's data alone; the larger, the closer to the federated model.
    Each step costs twice as much.
    """

    pull: Annotated[float, Meta(ge=0)] = 0.1

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        personal = to_device(state[PERSONAL], module) if PERSONAL in state else all_weights(module)
        anchors = received_parameters(module, received)
        moments = to_device(state.get(MOMENTS, {}), module)
        return {PERSONAL: personal, MOMENTS: moments, ANCHORS: anchors, GRADIENTS: {}}

    @torch.no_grad()
    def step(self, step: Step, state: LocalState) -> LocalState:
        personal, anchors = dict(state[PERSONAL]), state[ANCHORS]
        with torch.enable_grad():
            accumulated = gradients(step, personal)
        for name, gradient in accumulated.items():
            if name in anchors:
                gradient.add_(personal[name] - anchors[name], alpha=self.pull * step.gradient_share)
        accumulated = add_gradients(state[GRADIENTS], accumulated)
        if not step.optimiser_steps:
            return {**state, GRADIENTS: accumulated}
        return {**state, MOMENTS: optimizer_step(step, personal, accumulated, state[MOMENTS]), GRADIENTS: {}}

    def finish(
        self, module: nn.Module, received: GlobalModel, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        return {PERSONAL: to_cpu(state[PERSONAL]), MOMENTS: to_cpu(state[MOMENTS])}, {}

    def personal(self, module: nn.Module, state: LocalState) -> Weights | None:
        return state[PERSONAL]
