"""A second model trained beside the federation's, through the same module: what Ditto and APFL need.

The module wears the other weights for a moment, its own training step says the gradient, and its own
optimiser takes the step with moments of the other model's. So whatever the task, the precision and the
optimiser, a personal model is trained as the federated one is, and the federated one is left as it
was, bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medfed.local_training._local import Step
from medfed.wire.weights import Weights


def all_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's floating-point tensors, those that stay in the hospital
    included, where they are.
    """
    return {
        name: tensor.detach().clone()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }


def near(weights: Weights, module: nn.Module) -> dict[str, Tensor]:
    """Return weights on the module's device."""
    device = next(module.parameters()).device
    return {name: tensor.to(device) for name, tensor in weights.items()}


def at_rest(weights: Weights) -> dict[str, Tensor]:
    """Return weights on the CPU, where an idle site keeps them."""
    return {name: tensor.detach().cpu() for name, tensor in weights.items()}


@contextmanager
def unnoticed() -> Iterator[None]:
    """Put python's, numpy's and torch's random states back afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def worn(module: nn.Module, weights: Weights) -> Iterator[None]:
    """Let a module hold other weights for a while.

    Storage is exchanged and nothing copied where both are on one device, so what the module does to them
    meanwhile (batch norm's statistics, an optimiser's step) is done to `weights`.
    """
    own = module.state_dict(keep_vars=True)
    set_aside = {name: own[name].data for name in weights}
    try:
        for name, tensor in weights.items():
            own[name].data = tensor.to(own[name].device)
        yield
    finally:
        for name, data in set_aside.items():
            own[name].data = data


def gradients(step: Step, weights: Weights) -> dict[str, Tensor]:
    """Return the gradient of the module's own loss of a batch at other weights, times the batch's
    part of a step.

    Running statistics among `weights` move on in place. The random state is put back, so that the
    module's own step draws what it would have drawn. A gradient that half precision made infinite is
    returned as it is.
    """
    with worn(step.module, weights), unnoticed():
        named = {n: p for n, p in step.module.named_parameters() if p.requires_grad and n in weights}
        loss = step.own_loss() * step.scale
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: step.average(part) * (step.part / step.scale)
        for name, part in zip(named, found, strict=True)
        if part is not None
    }


def added(one: Weights, other: Weights) -> dict[str, Tensor]:
    """Return the sum of two sets of gradients, which need not have the same names."""
    total = dict(one)
    for name, tensor in other.items():
        total[name] = total[name] + tensor if name in total else tensor
    return total


def descend(step: Step, weights: Weights, gradients: Weights, moments: Weights) -> dict[str, Tensor]:
    """Take one step of the module's optimiser on other weights, in place; return
    that optimiser's new moments.

    A gradient that isn't finite is no step, as a gradient scaler has it.
    """
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values()):
        return dict(moments)
    optimiser = step.optimiser
    with worn(step.module, weights):
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
    made = type(like)(dict)
    for full, tensor in moments.items():
        name, _, key = full.rpartition(":")
        made[named[name]][key] = tensor
    return made


def _by_name(state: Any, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {
        f"{name}:{key}": value
        for name, parameter in named.items()
        for key, value in state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
