"""APFL: each hospital mixes its own model with the federated one, and learns the share of each.

Deng, Kamani, Mahdavi: Adaptive Personalized Federated Learning, 2020, arXiv:2003.13461, algorithm 1: in
addition to the federated model's step on w, v <- v - eta grad_v F(m) with m = alpha v + (1 - alpha) w, whose
gradient is alpha grad F(m), and by equation 11 alpha <- alpha - eta <v - w, grad F(m)>, clipped to [0, 1].
Departures: v takes the steps of the site's own optimiser, with separate moments; the running statistics of
the mixture are separate, not mixed.
"""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn

from medfed.local_training._local import LocalMethod, LocalState
from medfed.local_training._personal_model import add_gradients, gradients, optimizer_step
from medfed.local_training._step import Step
from medfed.local_training._weights import all_weights, to_cpu, to_device
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights, as_real

OWN, MOMENTS, MIX, GRADIENTS = "own", "moments", "mix", "gradients"


class APFL(LocalMethod, tag="apfl", frozen=True):
    """Trains a hospital's own model in addition to the federated one; their mixture is the personal model.

    `alpha` is the own model's initial share; with `adaptive` each hospital learns its share. Each step costs
    twice as much.
    """

    reports = ("train/alpha",)
    mixes_shared = True

    alpha: Annotated[float, Meta(ge=0, le=1)] = 0.5
    adaptive: bool = True

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        own = to_device(state[OWN], module) if OWN in state else all_weights(module)
        mix = state.get(MIX) or {"alpha": torch.tensor(self.alpha, dtype=torch.float64)}
        return {OWN: own, MOMENTS: to_device(state.get(MOMENTS, {}), module), MIX: mix, GRADIENTS: {}}

    @torch.no_grad()
    def step(self, step: Step, state: LocalState) -> LocalState:
        own, alpha = dict(state[OWN]), float(state[MIX]["alpha"])
        with torch.enable_grad():
            accumulated = gradients(step, mixed(step.module, own, alpha))
        accumulated = add_gradients(state[GRADIENTS], accumulated)
        if not step.optimiser_steps:
            return {**state, GRADIENTS: accumulated}
        if self.adaptive:
            shared = dict(step.module.named_parameters())
            slope = sum(
                float((as_real(own[n] - shared[n]).double() * as_real(g).double()).sum())
                for n, g in accumulated.items()
            )
            after = alpha - float(step.optimiser.param_groups[0]["lr"]) * slope
            alpha_after = min(max(after, 0.0), 1.0) if after == after else alpha
        else:
            alpha_after = alpha
        moments = optimizer_step(
            step, own, {name: g * alpha for name, g in accumulated.items()}, state[MOMENTS]
        )
        mix = {"alpha": torch.tensor(alpha_after, dtype=torch.float64)}
        return {OWN: own, MOMENTS: moments, MIX: mix, GRADIENTS: {}}

    def finish(
        self, module: nn.Module, received: GlobalModel, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        return {OWN: to_cpu(state[OWN]), MOMENTS: to_cpu(state[MOMENTS]), MIX: state[MIX]}, {}

    def scalars(self, state: LocalState) -> dict[str, float]:
        return {"train/alpha": float(state[MIX]["alpha"])}

    def personal(self, module: nn.Module, state: LocalState) -> Weights | None:
        return mixed(module, to_device(state[OWN], module), float(state[MIX]["alpha"]))


@torch.no_grad()
def mixed(module: nn.Module, own: Weights, alpha: float) -> dict[str, Tensor]:
    """Return alpha times the own parameters plus 1 - alpha times the module's; buffers are
    the own, not copied.
    """
    shared = dict(module.named_parameters())
    return {
        name: alpha * tensor + (1 - alpha) * shared[name] if name in shared else tensor
        for name, tensor in own.items()
    }
