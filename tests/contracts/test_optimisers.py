"""What every optimiser keeps: it trains at its `lr`, and its state is tensors and plain numbers.

The optimisers are those the folder holds, so a new file is held to this without an edit here.
"""

from __future__ import annotations

import io

import msgspec
import pytest
import torch

from medfed import registry as kinds
from medfed.models.optimisers import Optimiser

OPTIMISERS = kinds.kinds("optimisers")


@pytest.fixture(params=sorted(OPTIMISERS))
def optimiser(request: pytest.FixtureRequest) -> Optimiser:
    return OPTIMISERS[request.param]()  # type: ignore[return-value]


def steps(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        (parameter - 3).square().sum().backward()
        optimizer.step()


def test_it_goes_downhill_at_the_rate_asked_for(optimiser: Optimiser) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    faster = msgspec.structs.replace(optimiser, lr=0.05).build([parameter])
    assert faster.param_groups[0]["lr"] == 0.05
    steps(faster, parameter, 300)
    assert torch.allclose(parameter, torch.full((2,), 3.0), atol=0.1)


def test_its_state_is_read_back_without_pickle(optimiser: Optimiser) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = optimiser.build([parameter])
    steps(optimizer, parameter, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = optimiser.build([torch.nn.Parameter(parameter.detach().clone())])
    again.load_state_dict(torch.load(file, weights_only=True))
    twin = again.param_groups[0]["params"][0]
    steps(optimizer, parameter, 3)
    steps(again, twin, 3)
    assert torch.equal(parameter, twin)


def test_a_study_file_can_hold_it(optimiser: Optimiser) -> None:
    assert msgspec.json.decode(msgspec.json.encode(optimiser), type=type(optimiser)) == optimiser
