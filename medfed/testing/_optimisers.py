"""The contract of an optimiser: it trains at its `lr`, and its state is tensors and plain numbers."""

from __future__ import annotations

import io

import msgspec
import torch

from medfed.models.optimisers import Optimiser
from medfed.testing._contract import OF_EVERY_KIND, Contract

check_optimiser: Contract[Optimiser] = Contract("optimiser", OF_EVERY_KIND)


def step(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        (parameter - 3).square().sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()


@check_optimiser.check
def it_descends_at_its_learning_rate(optimiser: Optimiser) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    faster = msgspec.structs.replace(optimiser, lr=0.05).build([parameter])
    assert faster.param_groups[0]["lr"] == 0.05
    step(faster, parameter, 300)
    assert torch.allclose(parameter, torch.full((2,), 3.0), atol=0.1)


@check_optimiser.check
def its_state_is_read_back_without_pickle(optimiser: Optimiser) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = optimiser.build([parameter])
    step(optimizer, parameter, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    restored = optimiser.build([torch.nn.Parameter(parameter.detach().clone())])
    restored.load_state_dict(torch.load(file, weights_only=True))
    copy = restored.param_groups[0]["params"][0]
    step(optimizer, parameter, 3)
    step(restored, copy, 3)
    assert torch.equal(parameter, copy)
