"""A second, personal model trained through the same module as the federated one, for Ditto and APFL.

The module temporarily holds the personal weights; its own training step gives the gradient, and its own
optimiser takes the step with the personal model's moments. So a personal model is trained like the federated
one, whatever the task, the precision and the optimiser, and the federated model stays as it was, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medfed.local_training._step import Step
from medfed.local_training._weights import fork_rng, swapped_weights
from medfed.wire.weights import Weights


def gradients(step: Step, weights: Weights) -> dict[str, Tensor]:
    """Return the gradient of the module's loss of a batch at other weights, times the batch's gradient share.

    Running statistics in `weights` are updated in place. The random state is restored, so that the module's
    own step draws the same numbers as without this call. A gradient that half precision made infinite is
    returned as it is.
    """
    with swapped_weights(step.module, weights), fork_rng():
        named = {n: p for n, p in step.module.named_parameters() if p.requires_grad and n in weights}
        loss = step.module_loss() * step.loss_scale
        computed = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: step.average(gradient.to_dense() if gradient.is_sparse else gradient)
        * (step.gradient_share / step.loss_scale)
        for name, gradient in zip(named, computed, strict=True)
        if gradient is not None
    }


def add_gradients(one: Weights, other: Weights) -> dict[str, Tensor]:
    """Return the sum of two sets of gradients, which need not have the same names."""
    total = dict(one)
    for name, tensor in other.items():
        total[name] = total[name] + tensor if name in total else tensor
    return total


def optimizer_step(step: Step, weights: Weights, gradients: Weights, moments: Weights) -> dict[str, Tensor]:
    """Take one step of the module's optimiser on other weights, in place, and return the new moments.

    A gradient that is not finite skips the step, as a gradient scaler does.
    """
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values()):
        return dict(moments)
    optimiser = step.optimiser
    with swapped_weights(step.module, weights):
        named = {n: p for n, p in step.module.named_parameters() if n in weights}
        grads, state = {n: p.grad for n, p in named.items()}, optimiser.state
        try:
            for name, parameter in named.items():
                parameter.grad = gradients.get(name)
            if step.clip is not None:
                torch.nn.utils.clip_grad_norm_(list(named.values()), step.clip)
            optimiser.state = _by_parameter(moments, named, state)
            optimiser.step()
            return _by_name(optimiser.state, named)
        finally:
            optimiser.state = state
            for name, parameter in named.items():
                parameter.grad = grads[name]


def _by_parameter(moments: Weights, named: Mapping[str, nn.Parameter], like: Any) -> Any:
    state = type(like)(dict)
    for full, tensor in moments.items():
        name, _, key = full.rpartition(":")
        state[named[name]][key] = tensor
    return state


def _by_name(state: Any, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {
        f"{name}:{key}": value
        for name, parameter in named.items()
        for key, value in state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
