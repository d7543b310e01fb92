"""How sites are spread over worker processes, what they exchange with the hub, and whom errors name."""

from __future__ import annotations

import errno
import logging
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from medfed.errors import DataError, ExchangeError, SiteError, StudyError, place_in_plugin
from medfed.exchange import DropOut, MemoryExchange, detail_of
from medfed.exchange import _worker_side as side
from medfed.exchange._worker_host import SharedModels, WorkerCalls
from medfed.exchange._worker_link import Answer, Call, Failure, Link, ModelSent, Setup, error_of, failure_of
from medfed.exchange._worker_side import WorkerExchange
from medfed.federation import worker_processes
from medfed.federation._worker_process import how_ended
from medfed.federation.worker_processes import WorkerProcesses, Workers, shares_of
from medfed.wire.update import GlobalModel, Update, model_digest
from medfed.wire.weights import Difference, Released

STUDY = "5" * 64
SITES = ("east", "north")


def test_the_costliest_site_goes_first_and_each_to_the_worker_with_least() -> None:
    # 7 | 5, then 4 to the second (9), 3 to the first (10), 1 to the second (10): found by hand.
    costs = {"a": 3.0, "b": 7.0, "c": 1.0, "d": 5.0, "e": 4.0}
    assert shares_of(costs, 2) == (("a", "b"), ("c", "d", "e"))
    assert shares_of({"a": 1.0, "b": 1.0, "c": 1.0}, 2) == (("a", "c"), ("b",))
    assert shares_of({"a": 1.0}, 8) == (("a",),)


class Joined:
    """A worker's exchange and the hub's, joined as by two processes, with a thread for each end."""

    def __init__(self, hub: MemoryExchange) -> None:
        ours, theirs = socket.socketpair()
        self.host, self.worker = Link(ours), Link(theirs)
        self.models: list[ModelSent] = []
        setup = Setup(STUDY, SITES, False, (30, 0), {})
        self.exchange = WorkerExchange(self.worker, setup, nullcontext)
        for site in SITES:
            self.exchange.site_begins(site)
        self.calls = WorkerCalls(self.host, SharedModels(), self.own)
        self.hub = hub
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.answer, self.receive)]
        for thread in self.threads:
            thread.start()

    def own(self, call: Call) -> object:
        if call.method != "audit_head":
            raise StudyError(f"nobody answers '{call.method}'")
        return "head of " + call.site

    def answer(self) -> None:
        while (received := self.host.receive()) is not None:
            call, files = received
            assert isinstance(call, Call)
            file = self.calls.file_of(call, files[0]) if files else None
            self.calls.answer(call, self.hub, file)

    def receive(self) -> None:
        while (received := self.worker.receive()) is not None:
            frame, files = received
            if isinstance(frame, ModelSent):
                self.models.append(frame)
                self.exchange.model_came(frame, files[0])
            else:
                assert isinstance(frame, Answer)
                self.exchange.answered(frame)

    def end(self) -> None:
        self.host.shut()
        for thread in self.threads:
            thread.join()
        self.host.close()
        self.worker.close()


@pytest.fixture
def joined() -> Iterator[Joined]:
    both = Joined(MemoryExchange(STUDY, parties=SITES))
    yield both
    both.end()


def model(round: int, value: float) -> GlobalModel:
    weights = {"layer.weight": torch.full((3, 2), value), "layer.none": torch.empty(0)}
    groups = {"control": {"layer.weight": torch.arange(6.0).reshape(3, 2)}}
    return GlobalModel(round, weights, study_digest=STUDY, groups=groups, classes=("a", "b"))


def test_a_worker_gets_each_model_once_and_as_the_hub_has_it(joined: Joined) -> None:
    joined.hub.publish(model(0, 0.1))
    first = joined.exchange.fetch("north", 0)
    assert joined.exchange.fetch("east", 0) is first
    assert len(joined.models) == 1
    assert (first.round, first.classes) == (0, ("a", "b"))
    assert first.weights["layer.weight"].equal(torch.full((3, 2), 0.1))
    assert first.weights["layer.none"].shape == (0,)
    assert first.groups["control"]["layer.weight"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert first.sha256 == model_digest(model(0, 0.1))
    joined.hub.publish(model(1, 0.2))
    assert joined.exchange.fetch("east", 1).weights["layer.weight"].equal(torch.full((3, 2), 0.2))
    assert first.weights["layer.weight"].equal(torch.full((3, 2), 0.1))  # its memory is its own still
    assert joined.exchange.newest_model is joined.exchange.fetch("north", 0)


def test_who_writes_to_a_shared_model_is_told_and_changes_no_other_process(joined: Joined) -> None:
    joined.hub.publish(model(0, 0.1))
    joined.exchange.fetch("north", 0).weights["layer.weight"].add_(1)
    with pytest.raises(
        ExchangeError, match=r"round 0: 'layer.weight' of the hub's model was changed in place"
    ):
        joined.exchange.fetch("east", 0)
    assert joined.hub.fetch("east", 0).weights["layer.weight"].equal(torch.full((3, 2), 0.1))


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_updates_arrive_as_they_were_sent(
    joined: Joined, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side, "MAX_MEMORY_BYTES", limit)  # with 0 the second one goes to a file on disk
    joined.hub.publish(model(0, 0.1))
    received = joined.exchange.fetch("north", 0)
    for site, value in (("north", 0.5), ("east", 0.7)):
        own = {"layer.weight": torch.full((3, 2), value), "layer.none": torch.empty(0)}
        delta, groups = Difference(Released(own), received.weights), {"control": {"x": torch.tensor([value])}}
        joined.exchange.send(Update(site, 1, delta, 7, {"val/dice": 0.25}, groups, audit_head="a" * 64))
        own["layer.weight"].zero_()  # its memory is used again at once
    found = {one.site: one.update for one in joined.hub.collect(1, SITES, 5)}
    assert sorted(found) == list(SITES)
    for site, value in (("north", 0.5), ("east", 0.7)):
        update = found[site]
        assert update is not None
        exact = torch.full((3, 2), value).double() - torch.full((3, 2), 0.1).double()
        assert update.delta["layer.weight"].equal(exact)
        assert (update.examples, update.scalars, update.audit_head) == (7, {"val/dice": 0.25}, "a" * 64)
        assert update.groups["control"]["x"].equal(torch.tensor([value]))


def test_messages_secrets_and_the_audit_log_are_the_hubs(joined: Joined) -> None:
    hub, exchange = joined.hub, joined.exchange
    hub.publish(model(0, 0.1))
    exchange.store_secret("north", "key", b"\0secret")
    assert exchange.load_secret("north", "key") == hub.load_secret("north", "key") == b"\0secret"
    assert exchange.load_secret("east", "key") is None
    exchange.send_message("north", 1, 0, "keys", b"content")
    assert exchange.sent_message("north", "keys") == hub.sent_message("north", "keys")
    assert exchange.sent_message("east", "keys") is None
    hub.send_messages(1, 0, "shares", {"north": b"to north"})
    received = exchange.receive_message("north", 1, {"shares": 0})
    assert received is not None
    assert received.data == b"to north"
    assert exchange.call("north", "audit_head") == "head of north"
    exchange.drop_out("east", DropOut.DATA, "no case")
    (stopped,) = hub.collect(1, ("east",), 5)
    assert str(stopped.error) == "site 'east', round 1: no case"


def test_what_the_hub_refuses_is_raised_at_the_site(joined: Joined) -> None:
    with pytest.raises(StudyError, match="nobody answers 'publish'"):
        joined.exchange.call("north", "publish", 3)
    with pytest.raises(ExchangeError, match="site 'west' is none of this worker's, which are east, north"):
        joined.exchange.fetch("west", 0)
    joined.hub.close()
    with pytest.raises(
        ExchangeError, match="site 'north' waits for round 0, but the hub has closed the study"
    ):
        joined.exchange.fetch("north", 0)


def failed(error: BaseException) -> Failure:
    try:
        raise error
    except BaseException as raised:
        return failure_of(raised)


def test_an_error_keeps_its_class_its_words_and_where_it_arose() -> None:
    data = error_of(failed(DataError("no case")))
    assert isinstance(data, DataError)
    assert str(data) == "no case"
    assert 'test_worker_processes.py", line' in str(data.__cause__)
    assert isinstance(error_of(failed(KeyboardInterrupt())), KeyboardInterrupt)
    other = error_of(failed(ZeroDivisionError("a patient's name")))
    assert detail_of(other) == "training stopped with ZeroDivisionError"
    plugin = error_of(Failure("KeyError", "x", "", "plug-in 'age': task.py, line 12"))
    assert place_in_plugin(plugin) == "plug-in 'age': task.py, line 12"
    # A name of `errors` or of Python that is no error must not be called.
    assert type(error_of(Failure("print", "x"))).__mro__[1] is Exception
    assert type(error_of(Failure("deprecated", "x"))).__mro__[1] is Exception


def test_a_worker_that_dies_at_once_is_replaced_a_few_times_only(caplog: pytest.LogCaptureFixture) -> None:
    workers = WorkerProcesses(Workers("medfed.no_such_module", (("north", "south"),), 1, {}))
    exchange = MemoryExchange(STUDY)
    why = (
        "the worker process of 'north', 'south' ended with exit code 1, 4 times before one of them sent an "
        "update; if this machine lacks memory, choose fewer simulation.workers"
    )
    try:
        with pytest.raises(SiteError, match=why):
            workers.function("north")(exchange)
    finally:
        workers.close()
    assert workers.processes == ()
    assert len([one for one in caplog.records if "takes its place" in one.message]) == 3


def test_how_a_worker_ended_is_said_in_words() -> None:
    assert how_ended(1) == "ended with exit code 1"
    assert how_ended(-9) == "was ended by SIGKILL (perhaps as this machine ran out of memory)"
    assert how_ended(-11) == "was ended by SIGSEGV"


def test_what_a_worker_logs_is_logged_here_with_its_site(caplog: pytest.LogCaptureFixture) -> None:
    worker_processes._log("north", "medfed.x", logging.WARNING, "100% of it", "Traceback ...")
    (record,) = caplog.records
    assert (record.name, record.message, record.exc_text) == ("medfed.x", "100% of it", "Traceback ...")
    assert getattr(record, "site") == "north"  # noqa: B009 - mypy knows no such attribute


def test_workers_that_began_end_if_one_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    begin = subprocess.Popen

    def popen(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        if begun:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        begun.append(begin(*arguments, **options))  # type: ignore[call-overload]
        return begun[0]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        WorkerProcesses(Workers("medfed.no_such_module", (("north",), ("south",)), 1, {}))
    assert begun[0].poll() is not None
