"""MOON: what the network sees in a case is drawn towards what the global model sees, away from
the last local one's.

Li, He, Song: Model-Contrastive Federated Learning, CVPR 2021, arXiv:2103.16257: the loss gains mu
times -log(exp( sim(z, z_global) / tau) / (exp(sim(z, z_global) / tau) + exp(sim(z, z_previous) /
tau))), sim the cosine.

The representation z of a case is the input of the network's last layer, averaged over
space: its penultimate features.
Departures: no projection head is added, so the network stays the study's; in a site's first round there is no
previous local model and no term (the paper's would be that of two equal models, whose gradient is zero).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from medfed.errors import StudyError
from medfed.local_training._local import Local, LocalState, Step
from medfed.local_training._personal_model import all_weights, at_rest, near, unnoticed, worn
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

PREVIOUS, RECEIVED, FEATURES = "previous", "received", "features"


class Moon(Local, tag="moon", frozen=True):
    """Adds a contrastive term: near the global model's representation of a case, far from
    the last local model's.

    `mu` weighs it (the paper tries 0.1 to 10), `temperature` is the paper's tau. `head` is the network's last
    layer, whose input is the representation. Each step costs two more passes forward.
    """

    mu: Annotated[float, Meta(ge=0)] = 1.0
    temperature: Annotated[float, Meta(gt=0)] = 0.5
    head: str = "head"

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        if PREVIOUS not in state:
            return {}
        return {PREVIOUS: near(state[PREVIOUS], module), RECEIVED: all_weights(module)}

    @torch.no_grad()
    def step(self, step: Step, state: LocalState) -> LocalState:
        if PREVIOUS not in state:
            return state
        seen = {}
        # Copies: batch norm's statistics must not move on by a look.
        for name in (RECEIVED, PREVIOUS):
            weights = {key: tensor.clone() for key, tensor in state[name].items()}
            with unnoticed(), worn(step.module, weights), self._watched(step.module) as captured:
                step.own_loss()
            seen[name] = _representation(captured)
        return {**state, FEATURES: seen}

    def loss(self, module: nn.Module, own: Callable[[], Tensor], state: LocalState) -> Tensor:
        if FEATURES not in state:
            return own()
        with self._watched(module) as captured:
            loss = own()
        z = _representation(captured)
        return loss + self.mu * contrast(
            z, state[FEATURES][RECEIVED], state[FEATURES][PREVIOUS], self.temperature
        )

    def finish(
        self, module: nn.Module, received: GlobalModel, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        return {PREVIOUS: at_rest(all_weights(module))}, {}

    @contextmanager
    def _watched(self, module: nn.Module) -> Iterator[list[Any]]:
        """Gather what goes into the last layer meanwhile."""
        captured: list[Any] = []
        handle = last_layer(module, self.head).register_forward_pre_hook(
            lambda layer, inputs: captured.append(inputs[0])
        )
        try:
            yield captured
        finally:
            handle.remove()


def last_layer(module: nn.Module, name: str) -> nn.Module:
    """Return the submodule of that name or path, the outermost where there are several.

    Raises:
        StudyError: if there is none.
    """
    for prefix, child in module.named_modules():
        if f".{prefix}".endswith(f".{name}"):
            return child
    raise StudyError(
        f"local 'moon': {type(module).__name__} has no submodule '{name}'; set train.local.head to its last layer's name"
    )


def _representation(captured: list[Any]) -> Tensor:
    features = captured[0]
    assert isinstance(features, Tensor)
    return features.flatten(2).mean(dim=2) if features.ndim > 2 else features


def contrast(z: Tensor, towards: Tensor, away: Tensor, temperature: float) -> Tensor:
    """Return the mean over cases of the paper's contrastive term of representations (B, F)."""
    near_to = functional.cosine_similarity(z, towards, dim=1) / temperature
    far_from = functional.cosine_similarity(z, away, dim=1) / temperature
    return functional.softplus(far_from - near_to).mean()
