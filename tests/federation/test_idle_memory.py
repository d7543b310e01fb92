"""A site that waits in a simulation holds no weights, whatever it does afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import medfed
from medfed.exchange import MemoryExchange
from medfed.federation.idle_memory import idle_memory
from medfed.wire.update import GlobalModel
from medfed.wire.weights import load, weights_of
from tests.federation.test_simulation import Net, fit


def size(module: nn.Module) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in module.state_dict().values())


def test_weights_are_given_back_while_a_site_waits_in_this_process():
    module = nn.Linear(3, 1)
    last = GlobalModel(1, weights_of(module))
    with idle_memory(MemoryExchange(), module, last):
        assert size(module) == 0
        load(module, {"weight": torch.ones(1, 3), "bias": torch.zeros(1)})
    assert module.weight.tolist() == [[1, 1, 1]]


def test_a_wait_that_fails_leaves_the_model_received_last():
    module = nn.Linear(3, 1)
    last = GlobalModel(1, weights_of(module))
    with torch.no_grad():
        module.weight.add_(1)  # trained meanwhile
    with pytest.raises(OSError, match="gone"), idle_memory(MemoryExchange(), module, last):
        raise OSError("gone")
    assert torch.equal(module.weight, last.weights["weight"])


@pytest.mark.parametrize("exchange", [object(), MemoryExchange()])
def test_across_machines_and_before_the_first_model_the_weights_stay(exchange):
    module = nn.Linear(3, 1)
    last = None if isinstance(exchange, MemoryExchange) else GlobalModel(1, weights_of(module))
    with idle_memory(exchange, module, last):
        assert size(module) == 16


def test_after_each_round_no_site_holds_weights():
    modules, sizes = [], []

    def made() -> Net:
        modules.append(Net())
        return modules[-1]

    medfed.run_federation(
        {name: fit(name, module=made, rounds=3) for name in "abc"},
        weights_of(Net()),
        rule="fedavg",
        rounds=3,
        on_round=lambda report: sizes.append([size(module) for module in modules]),
    )
    # The first site may go on before all is written down; the others still wait for their turn.
    assert all(sum(each) <= 16 for each in sizes[:3])
    assert [size(module) for module in modules] == [16, 16, 16]
