"""Copies of a module's weights, other weights in it for a while, and random states that stay as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights, as_form_of


def all_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all floating-point and complex tensors of a module, on their devices."""
    return {
        name: tensor.detach().clone()
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex())
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
            tensors[name].data = as_form_of(tensor.to(tensors[name].device), tensors[name])
        yield
    finally:
        for name, data in originals.items():
            tensors[name].data = data
