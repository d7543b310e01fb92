"""A site that waits in a simulation holds no weights of its own, and whoever looks sees the last model."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.exchange import MemoryExchange
from medfed.federation import simulation
from medfed.federation.config import HubConfig
from medfed.federation.idle_memory import give_up, idle_memory, remembered
from medfed.federation.simulation import simulate
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Released, load, shared_tensors, weights_of
from tests.federation.test_simulation import Net, fit


def places(module: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in module.state_dict().values()]


def test_a_waiting_module_shows_the_shared_model_and_then_has_its_own_memory():
    module, other = nn.Linear(3, 1), nn.Linear(3, 1)
    optimiser_holds = module.weight
    last = GlobalModel(1, weights_of(nn.Linear(3, 1)))
    with idle_memory(MemoryExchange(), module, last), idle_memory(MemoryExchange(), other, last):
        assert places(module) == places(other) == [tensor.data_ptr() for tensor in last.weights.values()]
        assert torch.equal(module.weight, last.weights["weight"])
    assert not set(places(module)) & {*places(other), *(t.data_ptr() for t in last.weights.values())}
    kept = last.weights["weight"].clone()
    load(module, {"weight": torch.ones(1, 3), "bias": torch.zeros(1)})
    assert module.weight is optimiser_holds
    assert module.weight.requires_grad
    assert module.weight.tolist() == [[1, 1, 1]]
    assert torch.equal(last.weights["weight"], kept)


def test_a_wait_that_fails_leaves_the_model_received_last_in_memory_of_its_own():
    module = nn.Linear(3, 1)
    last = GlobalModel(1, weights_of(module))
    with torch.no_grad():
        module.weight.add_(1)  # trained meanwhile
    with pytest.raises(OSError, match="gone"), idle_memory(MemoryExchange(), module, last):
        raise OSError("gone")
    assert torch.equal(module.weight, last.weights["weight"])
    assert module.weight.data_ptr() != last.weights["weight"].data_ptr()


@pytest.mark.parametrize("exchange", [object(), MemoryExchange()])
def test_across_machines_and_before_the_first_model_the_weights_stay(exchange):
    module = nn.Linear(3, 1)
    last = None if isinstance(exchange, MemoryExchange) else GlobalModel(1, weights_of(module))
    before = places(module)
    with idle_memory(exchange, module, last):
        assert places(module) == before


def test_what_stays_at_the_site_and_what_shares_memory_keeps_it():
    memory = torch.arange(6.0)
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.register_buffer("tail", memory[4:])
    module.register_buffer("columns", memory[:4].view(2, 2).T)
    module[1].weight = module[1].bias  # one tensor under two names
    last = GlobalModel(1, {n: t + 1 for n, t in weights_of(module).items() if not n.startswith("0.")})
    own, counted = module[0].weight.data_ptr(), module[1].num_batches_tracked.data_ptr()
    with idle_memory(MemoryExchange(), module, last):
        assert (module[0].weight.data_ptr(), module[1].num_batches_tracked.data_ptr()) == (own, counted)
        assert module.tail.data_ptr() == memory[4:].data_ptr()
        assert module[1].weight is module[1].bias
    load(module, last.weights)
    assert module.columns.stride() == (1, 2)
    assert module.tail.untyped_storage().data_ptr() == module.columns.untyped_storage().data_ptr()
    assert memory.tolist() == [1, 2, 3, 4, 5, 6]


def test_strides_stay_as_they_were():
    module = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    last = GlobalModel(1, weights_of(nn.Conv2d(2, 3, 3)))
    with idle_memory(MemoryExchange(), module, last):
        pass
    load(module, last.weights)
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(module.weight, last.weights["weight"])


def test_after_each_round_waiting_sites_show_one_model():
    modules, seen = [], []

    def made() -> Net:
        modules.append(Net())
        return modules[-1]

    def look(report):
        seen.append(len({module.net.weight.data_ptr() for module in modules}))

    medfed.run_federation(
        {name: fit(name, module=made, rounds=3) for name in "abc"},
        weights_of(Net()),
        rule="fedavg",
        rounds=3,
        on_round=look,
    )
    # The first site may go on before all is written down; the others still wait for their turn.
    assert all(number <= 2 for number in seen[:3])
    assert len({module.net.weight.data_ptr() for module in modules}) == 3


def test_memory_that_a_module_looks_at_under_another_name_stays_one_memory():
    module, last = nn.Linear(3, 1), GlobalModel(1, weights_of(nn.Linear(3, 1)))
    seen_elsewhere = module.weight.detach()[:, 1:]
    before = module.weight.data_ptr(), module.weight.tolist()
    with idle_memory(MemoryExchange(), module, last):
        assert (module.weight.data_ptr(), module.weight.tolist()) == before
        assert module.bias.data_ptr() == last.weights["bias"].data_ptr()
    load(module, {"weight": torch.ones(1, 3), "bias": torch.zeros(1)})
    assert seen_elsewhere.tolist() == [[1, 1]]


def test_memory_that_is_looked_at_under_another_name_is_copied_to_be_sent():
    module = nn.Linear(3, 1)
    seen_elsewhere = module.weight.detach()
    exchange, last = MemoryExchange(), GlobalModel(1, weights_of(module))
    sent, given = give_up(exchange, module, shared_tensors(module), last.weights)
    looked_at = sent["bias"][:]  # as a hub does that adds it up meanwhile
    assert given == {"bias"}
    values = weights_of(module)
    with idle_memory(exchange, module, last, given):
        pass
    with torch.no_grad():
        module.weight.fill_(9), module.bias.fill_(9)
    assert seen_elsewhere.tolist() == [[9, 9, 9]]
    assert all(torch.equal(sent[name], values[name]) for name in values)
    assert torch.equal(looked_at, values["bias"])


@pytest.fixture
def sampled():
    """Return a run in which two of six sites train in a round: its model, who trained, who had a module."""

    def run(rounds: int = 4):
        modules, asked, alive = {}, [], []

        def made(name: str) -> Net:
            modules[name] = Net()
            return modules[name]

        def look(report):
            asked.append({one.site for one in report.results if one.status == "merged"})
            alive.append(set(modules))

        sites = {name: fit(name, module=partial(made, name), rounds=rounds) for name in "abcdef"}
        config = HubConfig(rounds, tuple("abcdef"), FedAvg(), minimum=1, fraction=1 / 3, seed=5)
        torch.manual_seed(3)
        final = simulate(sites, weights_of(Net()), config, on_round=look)
        return final.weights, asked, alive

    return run


def test_a_site_is_built_when_a_round_first_asks_it_and_nothing_else_changes(sampled, monkeypatch):
    weights, asked, alive = sampled()
    trained: set[str] = set()
    for names, built in zip(asked[:4], alive[:4], strict=True):
        assert len(names) == 2
        trained |= names
        assert built >= trained
    assert len(alive[0]) <= 4  # the next round's two sites may have begun before the report
    monkeypatch.setattr(simulation, "_asks_some", lambda config: False)
    everybody_waits, same, _ = sampled()
    assert same == asked
    assert all(torch.equal(weights[name], everybody_waits[name]) for name in weights)


def test_where_a_round_asks_some_a_waiting_site_holds_no_old_model():
    exchange, module = MemoryExchange(only_selected=True), nn.Linear(3, 1)
    last = GlobalModel(1, weights_of(module), groups={"control": weights_of(module)})
    kept = [weakref.ref(tensor) for tensor in (*last.weights.values(), *last.groups["control"].values())]
    with idle_memory(exchange, module, last):
        last = remembered(exchange, last)
        assert module.weight.isnan().all()
        gc.collect()
        assert not any(reference() is not None for reference in kept)
    assert last.round == 1
    load(module, {"weight": torch.ones(1, 3), "bias": torch.zeros(1)})
    assert module.weight.tolist() == [[1, 1, 1]]


def test_what_is_sent_is_the_modules_own_memory_which_it_then_lacks():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[1].weight = module[1].bias  # one tensor under two names
    module.register_buffer("tail", torch.arange(6.0)[4:])  # a part of another's memory
    exchange, last = MemoryExchange(), GlobalModel(1, weights_of(module))
    values = weights_of(module)
    sent, given = give_up(exchange, module, shared_tensors(module), last.weights)
    assert isinstance(sent, Released)
    assert sent["0.weight"].data_ptr() == module[0].weight.data_ptr()
    assert sent["tail"].data_ptr() != module.tail.data_ptr()
    with idle_memory(exchange, module, last, given):
        pass
    with torch.no_grad():
        for tensor in module.state_dict(keep_vars=True).values():
            tensor.fill_(9)
    assert all(torch.equal(sent[name], values[name]) for name in values)


def test_across_machines_what_is_sent_is_a_copy():
    module = nn.Linear(2, 2)
    sent, given = give_up(object(), module, shared_tensors(module), weights_of(module))
    assert not isinstance(sent, Released)
    assert not given
    assert sent["weight"].data_ptr() != module.weight.data_ptr()


def test_where_a_round_asks_some_a_wait_that_fails_leaves_the_newest_model():
    exchange, module = MemoryExchange(only_selected=True), nn.Linear(3, 1)
    exchange.publish(GlobalModel(5, {"weight": torch.full((1, 3), 5.0), "bias": torch.zeros(1)}))
    with (
        pytest.raises(OSError, match="gone"),
        idle_memory(exchange, module, GlobalModel(1, weights_of(module))),
    ):
        raise OSError("gone")
    assert module.weight.tolist() == [[5, 5, 5]]
    assert module.weight.data_ptr() != exchange.newest_model.weights["weight"].data_ptr()
