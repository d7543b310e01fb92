"""MOON: pulls a case's representation towards the global model's and away from the last local model's.

Li, He, Song: Model-Contrastive Federated Learning, CVPR 2021, arXiv:2103.16257: the loss gains mu
times -log(exp( sim(z, z_global) / tau) / (exp(sim(z, z_global) / tau) + exp(sim(z, z_previous) /
tau))), sim the cosine.

The representation z of a case is the input of the network's last layer, averaged over space: its penultimate
features. Departures: no projection head is added, so the network stays the study's; in a site's first round
there is no previous local model and no term (the paper's term of two equal models has gradient zero).
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
from medfed.local_training._local import LocalMethod, LocalState
from medfed.local_training._step import Step
from medfed.local_training._weights import all_weights, fork_rng, swapped_weights, to_cpu, to_device
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

PREVIOUS, RECEIVED, FEATURES = "previous", "received", "features"


class Moon(LocalMethod, tag="moon", frozen=True):
    """Adds a contrastive term: close to the global model's representation, far from the last local model's.

    `mu` is its weight (the paper tries 0.1 to 10), `temperature` the paper's tau. `head` is the network's
    last layer, whose input is the representation. Each step costs two more forward passes.
    """

    mu: Annotated[float, Meta(ge=0)] = 1.0
    temperature: Annotated[float, Meta(gt=0)] = 0.5
    head: str = "head"

    def lacking(self, module: nn.Module) -> str:
        return "" if _find_layer(module, self.head) is not None else _no_layer(module, self.head)

    def start(self, module: nn.Module, received: GlobalModel, state: LocalState) -> LocalState:
        if PREVIOUS not in state:
            return {}
        return {PREVIOUS: to_device(state[PREVIOUS], module), RECEIVED: all_weights(module)}

    @torch.no_grad()
    def step(self, step: Step, state: LocalState) -> LocalState:
        if PREVIOUS not in state:
            return state
        # Copies, because these passes must not update batch norm's statistics.
        features: dict[str, Tensor] = {}
        for name in (RECEIVED, PREVIOUS):
            weights = {key: tensor.clone() for key, tensor in state[name].items()}
            with (
                fork_rng(),
                swapped_weights(step.module, weights),
                self._captured_features(step.module) as captured,
            ):
                step.module_loss()
            features[name] = _representation(captured)
        return {**state, FEATURES: features}

    def loss(self, module: nn.Module, module_loss: Callable[[], Tensor], state: LocalState) -> Tensor:
        if FEATURES not in state:
            return module_loss()
        with self._captured_features(module) as captured:
            loss = module_loss()
        z = _representation(captured)
        return loss + self.mu * contrastive_term(
            z, state[FEATURES][RECEIVED], state[FEATURES][PREVIOUS], self.temperature
        )

    def finish(
        self, module: nn.Module, received: GlobalModel, state: LocalState, steps: int, rate: float
    ) -> tuple[LocalState, dict[str, Weights]]:
        return {PREVIOUS: to_cpu(all_weights(module))}, {}

    @contextmanager
    def _captured_features(self, module: nn.Module) -> Iterator[list[Any]]:
        """Collect the inputs of the last layer meanwhile."""
        captured: list[Any] = []
        handle = last_layer(module, self.head).register_forward_pre_hook(
            lambda layer, inputs: captured.append(inputs[0])
        )
        try:
            yield captured
        finally:
            handle.remove()


def last_layer(module: nn.Module, name: str) -> nn.Module:
    """Return the submodule of that name or path, the outermost if there are several.

    Raises:
        StudyError: if there is none.
    """
    layer = _find_layer(module, name)
    if layer is None:
        raise StudyError(f"local 'moon' {_no_layer(module, name)}")
    return layer


def _find_layer(module: nn.Module, name: str) -> nn.Module | None:
    child: nn.Module
    for prefix, child in module.named_modules():
        if f".{prefix}".endswith(f".{name}"):
            return child
    return None


def _no_layer(module: nn.Module, name: str) -> str:
    return (
        f"needs the last layer, and {type(module).__name__} has no submodule '{name}'; set train.local.head, "
        "or Moon(head=...), to its name"
    )


def _representation(captured: list[Any]) -> Tensor:
    features = captured[0]
    assert isinstance(features, Tensor)
    return features.flatten(2).mean(dim=2) if features.ndim > 2 else features


def contrastive_term(z: Tensor, towards: Tensor, away: Tensor, temperature: float) -> Tensor:
    """Return the mean over cases of the paper's contrastive term of representations (B, F)."""
    similar = functional.cosine_similarity(z, towards, dim=1) / temperature
    dissimilar = functional.cosine_similarity(z, away, dim=1) / temperature
    return functional.softplus(dissimilar - similar).mean()
