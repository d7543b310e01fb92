"""A site that fails in any way is named, with its round and tensor, and the round goes on without it."""

from __future__ import annotations

import re

import pytest
import torch

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import QuorumError, WireError
from medfed.exchange import MemoryExchange
from medfed.federation.round import SiteConnection, receive
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.update import GlobalModel, Update, check_model

WEIGHTS = {"net.weight": torch.zeros(2, 3), "net.bias": torch.zeros(2)}


def site(name: str, value: float = 1.0, **broken):
    """Return a site that answers every round by hand with `value` added to each weight, or
    with what is broken.
    """

    def work(exchange):
        received = exchange.fetch(name, 0)
        while not received.final:
            delta = {key: torch.full_like(tensor, value) for key, tensor in received.weights.items()}
            number = received.round + 1
            exchange.send(Update(name, number, **{"delta": delta, "examples": 10, **broken}))
            received = exchange.fetch(name, number)
        exchange.send(Update(name, received.round + 1, {}, 0, {"val/dice": value}))

    return work


def raises(error: BaseException):
    def work(exchange):
        exchange.fetch("broken", 0)
        raise error

    return work


def delta(**changes) -> dict:
    full = {name: torch.ones_like(tensor) for name, tensor in WEIGHTS.items()}
    return {name: tensor for name, tensor in {**full, **changes}.items() if tensor is not None}


NAN = torch.tensor([1.0, float("nan")])
BROKEN = {
    "not finite": (
        site("broken", delta=delta(**{"net.bias": NAN})),
        "'net.bias' has 1 of 2 values that are not finite",
    ),
    "a wrong shape": (
        site("broken", delta=delta(**{"net.bias": torch.ones(3)})),
        "'net.bias' has shape \\(3,\\), the global model has \\(2,\\)",
    ),
    "a wrong name": (site("broken", delta=delta(extra=torch.ones(1))), "'extra' is not in the global model"),
    "a missing name": (site("broken", delta=delta(**{"net.bias": None})), "'net.bias' is missing"),
    "integers": (
        site("broken", delta=delta(**{"net.bias": torch.ones(2, dtype=torch.int64)})),
        "'net.bias' has dtype torch.int64",
    ),
    "no examples": (site("broken", examples=0), "trained on 0 examples"),
    "an error of medfed": (
        raises(medfed.ImageError("case 1f: slices are missing")),
        "case 1f: slices are missing",
    ),
    "another error": (raises(KeyError("/data/Mrs Smith")), "training stopped with KeyError"),
}


@pytest.mark.parametrize("broken, message", BROKEN.values(), ids=BROKEN.keys())
def test_the_round_goes_on_without_it_and_the_report_says_why(broken, message):
    reports = []
    final = medfed.run_federation(
        {"north": site("north", 1.0), "west": site("west", 3.0), "broken": broken},
        WEIGHTS,
        rule=FedAvg(),
        rounds=2,
        minimum=2,
        on_round=reports.append,
    )
    # By hand: each round adds (10 * 1 + 10 * 3) / 20 = 2.
    assert torch.equal(final.weights["net.bias"], torch.full((2,), 4.0))
    answers = {answer.site: answer for answer in reports[0].results}
    assert answers["north"].status == answers["west"].status == "merged"
    assert answers["broken"].status in ("refused", "absent")

    assert re.search(message, answers["broken"].reason)
    assert "'broken'" in answers["broken"].reason
    assert "round 1" in answers["broken"].reason
    assert "Smith" not in answers["broken"].reason


@pytest.mark.parametrize("broken, message", BROKEN.values(), ids=BROKEN.keys())
def test_too_few_sites_stop_the_study_and_are_named(broken, message):
    with pytest.raises(QuorumError, match=message) as caught:
        medfed.run_federation(
            {"north": site("north"), "broken": broken}, WEIGHTS, rule=FedAvg(), rounds=2, minimum=2
        )
    # The study ends as soon as one has failed, whether or not the other has sent by then.
    assert re.search("round 1: [01] of 2 sites", str(caught.value))
    assert "sampling.minimum" in str(caught.value)
    assert "Smith" not in str(caught.value)


def test_weights_are_normalised_over_who_answered():
    final = medfed.run_federation(
        {"a": site("a", 1.0, examples=30), "b": site("b", 5.0, examples=10), "c": raises(RuntimeError())},
        WEIGHTS,
        rule=FedAvg(),
        rounds=1,
        minimum=2,
    )
    # By hand: (30 * 1 + 10 * 5) / 40 = 2.
    assert torch.equal(final.weights["net.weight"], torch.full((2, 3), 2.0))


def test_the_closing_scores_reach_the_hub():
    reports = []
    medfed.run_federation({"a": site("a", 0.5)}, WEIGHTS, rule=FedAvg(), rounds=1, on_round=reports.append)
    assert reports[-1].round == 2
    assert reports[-1].results[0].scalars == {"val/dice": 0.5}


def test_inputs_are_not_mutated():
    before = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
    medfed.run_federation({"a": site("a"), "b": site("b")}, WEIGHTS, rule=FedAvg(), rounds=2)
    assert all(torch.equal(WEIGHTS[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    "values, found",
    [
        (torch.tensor([1.0, float("nan"), float("inf")]), "has 2 of 3 values that are not finite"),
        (torch.tensor([1, 2, 3]), "has dtype torch.int64, expected a floating-point one"),
    ],
    ids=["not finite", "integers"],
)
def test_a_model_from_which_nobody_can_train_is_refused_as_the_hubs_fault(values, found, tmp_path):
    """Trained from, its updates were refused with 'training diverged there', which blames the hospital."""
    exchange = MemoryExchange("")
    exchange.publish(GlobalModel(4, {"a": torch.zeros(2), "w": values}))
    connection = SiteConnection("north", exchange, audit=AuditLog(tmp_path / "audit.jsonl"))
    with pytest.raises(WireError, match=f"site 'north', round 4: 'w' of the hub's model of round 4 {found}"):
        receive(connection, 4)
    assert [line["event"] for line in entries(tmp_path / "audit.jsonl")] == ["received", "hub refused"]


def test_a_sum_that_overflows_is_no_value_that_is_not_finite():
    weights = {"w": torch.full((4,), 3e38)}
    assert check_model(GlobalModel(0, weights), "x").weights is weights


def test_sites_of_one_process_check_each_model_once():
    exchange = MemoryExchange("", parties=("a", "b"))
    finite = GlobalModel(0, {"w": torch.ones(2)}, study_digest="")
    exchange.publish(finite)
    first, second = (receive(SiteConnection(name, exchange), 0) for name in ("a", "b"))
    assert exchange.valid_model == first.sha256 == second.sha256 != ""
    exchange.publish(GlobalModel(1, {"w": torch.tensor([1.0, float("nan")])}, study_digest=""))
    for name in ("a", "b"):
        with pytest.raises(WireError, match=f"site '{name}'.*1 of 2 values that are not finite"):
            receive(SiteConnection(name, exchange), 1)
