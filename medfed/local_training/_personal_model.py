"""A second, personal model trained through the same module as the federated one, for Ditto and APFL.

The module temporarily holds the personal weights; its own training step gives the gradient, and its own
optimiser takes the step with the personal model's moments. So a personal model is trained like the federated
one, whatever the task, the precision and the optimiser, and the federated model stays as it was, bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medfed.local_training._step import Step
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights


def all_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all floating-point tensors of a module, on their devices."""
    return {
        name: tensor.detach().clone()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }


def received_parameters(module: nn.Module, received: GlobalModel) -> dict[str, Tensor]:
    """Return copies of a module's trainable parameters that came with the received weights."""
    return {
        name: parameter.detach().clone()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and name in received.weights
    }


def to_device(weights: Weights, module: nn.Module) -> dict[str, Tensor]:
    """Return weights on the module's device."""
    device = next(module.parameters()).device
    return {name: tensor.to(device) for name, tensor in weights.items()}


def to_cpu(weights: Weights) -> dict[str, Tensor]:
    """Return weights on the CPU, where an idle site keeps them."""
    return {name: tensor.detach().cpu() for name, tensor in weights.items()}


@contextmanager
def fork_rng() -> Iterator[None]:
    """Restore the random states of Python, numpy and torch afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def swapped_weights(module: nn.Module, weights: Weights) -> Iterator[None]:
    """Let a module hold other weights temporarily.

    On one device, storage is exchanged and nothing is copied, so what happens to the module's tensors
    meanwhile (batch norm's statistics, an optimiser's step) happens to `weights`.
    """
    tensors = module.state_dict(keep_vars=True)
    originals = {name: tensors[name].data for name in weights}
    try:
        for name, tensor in weights.items():
            tensors[name].data = tensor.to(tensors[name].device)
        yield
    finally:
        for name, data in originals.items():
            tensors[name].data = data


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
        name: step.average(gradient) * (step.gradient_share / step.loss_scale)
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
