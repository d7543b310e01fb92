"""A module's weights: copies, other weights in it for a while, and random states that stay as they were."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
import torch
from torch import nn

from medfed.local_training._weights import all_weights, fork_rng, received_parameters, swapped_weights
from medfed.wire.update import GlobalModel


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_copies_hold_parameters_and_floating_point_buffers():
    module = net()
    copies = all_weights(module)
    assert set(copies) == set(module.state_dict()) - {"1.num_batches_tracked"}
    with torch.no_grad():
        module[0].weight.zero_()
    assert copies["0.weight"].any()
    assert not copies["0.weight"].requires_grad


def test_received_parameters_are_those_that_train_and_came_from_the_hub():
    module = net()
    module[0].bias.requires_grad_(False)
    received = GlobalModel(1, {name: t for name, t in module.state_dict().items() if name != "1.weight"})
    assert set(received_parameters(module, received)) == {"0.weight", "1.bias"}


def test_what_happens_meanwhile_happens_to_the_other_weights():
    module = net()
    before = all_weights(module)
    other = {name: torch.full_like(tensor, 2.0) for name, tensor in before.items()}
    parameter = module[0].weight
    with swapped_weights(module, other):
        assert module[0].weight is parameter  # an optimiser that holds it steps the other weights
        module(torch.randn(4, 2))
        with torch.no_grad():
            parameter.add_(1.0)
    for name, tensor in all_weights(module).items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(other["0.weight"], torch.full((3, 2), 3.0))
    assert not torch.equal(other["1.running_mean"], torch.full((3,), 2.0))


def test_the_modules_own_weights_are_back_after_an_error():
    module = net()
    before = all_weights(module)
    with pytest.raises(RuntimeError, match="diverged"), swapped_weights(module, {"0.bias": torch.ones(3)}):
        raise RuntimeError("diverged")
    assert torch.equal(module[0].bias.detach(), before["0.bias"])


def draws() -> tuple:
    return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002


def test_random_states_stay_as_they_were():
    def seed() -> None:
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002
        torch.manual_seed(7)

    seed()
    expected = draws()
    seed()
    with fork_rng():
        draws()
    assert draws() == expected
    seed()
    with contextlib.suppress(RuntimeError), fork_rng():
        draws()
        raise RuntimeError("diverged")
    assert draws() == expected
