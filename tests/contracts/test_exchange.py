"""The contract of every exchange, over memory, a folder, object storage and a broker."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from medfed.deployment.enrolment import enrol
from medfed.deployment.enrolment.broker import Broker
from medfed.errors import ExchangeError, SiteError, WireError
from medfed.exchange import MemoryExchange
from medfed.exchange.folder import Folder
from medfed.exchange.nats import Nats
from medfed.registry import kinds
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference, digest

STUDY = "ab" * 32
# Long enough for a slow machine, so that a party that waits forever fails instead of hanging.
PATIENCE_S = 60


@dataclass
class Place:
    """An exchange under test: its two sides, opened and opened again with the same folders."""

    open_hub: Callable[[], Any]
    open_site: Callable[[str], Any]
    lasting: bool = True
    advertised_study: Callable[[], tuple[str, str]] | None = None
    opened: list[Any] = field(default_factory=list)

    def hub(self) -> Any:
        self.opened.append(self.open_hub())
        return self.opened[-1]

    def site(self, name: str) -> Any:
        self.opened.append(self.open_site(name))
        return self.opened[-1]


def memory(tmp_path: Path) -> Iterator[Place]:
    one = MemoryExchange(STUDY)
    yield Place(lambda: one, lambda name: one, lasting=False)


def over(record: Any, tmp_path: Path) -> Place:
    return Place(
        lambda: record.open_hub(STUDY, tmp_path / "hub"),
        lambda name: record.open_site(STUDY, name, tmp_path / name),
        advertised_study=record.advertised_study,
    )


def folder(tmp_path: Path) -> Iterator[Place]:
    yield over(Folder(url=str(tmp_path / "share"), poll_s=0.02), tmp_path)


def objects(tmp_path: Path) -> Iterator[Place]:
    """fsspec's object storage in memory: no rename, and a written object replaces the one before."""
    yield over(Folder(url=f"memory://{tmp_path}/bucket", poll_s=0.02), tmp_path)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def broker(tmp_path: Path, scheme: str = "tls") -> Iterator[Place]:
    """A real nats-server on loopback with mutual TLS and one account per site."""
    enrolment = tmp_path / "enrolment"
    port, websocket_port = free_ports(2)
    enrol.init(enrolment, "test", ["127.0.0.1"], port, websocket_port, listen="127.0.0.1")
    for site in ("north", "south"):
        request, _ = enrol.request(tmp_path / "credentials" / site, site)
        enrol.sign(enrolment, request, tmp_path / f"{site}.kit")
        enrol.accept(tmp_path / "credentials" / site, tmp_path / f"{site}.kit")
    server = Broker(enrolment)
    # The kit names both URLs, of which the first is used.
    urls = [] if scheme == "tls" else [f"wss://127.0.0.1:{websocket_port}"]

    def record(name: str) -> Nats:
        return Nats(credentials=str(tmp_path / "credentials" / name), urls=urls)

    def site(name: str) -> Any:
        return record(name).open_site(STUDY, name, tmp_path / name)

    try:
        hub = Nats(credentials=str(enrolment / "hub"), urls=urls)
        yield Place(
            lambda: hub.open_hub(STUDY, tmp_path / "hub"),
            site,
            advertised_study=record("north").advertised_study,
        )
    finally:
        server.stop()


def websocket(tmp_path: Path) -> Iterator[Place]:
    """The same broker over WebSocket with TLS."""
    yield from broker(tmp_path, "wss")


PLACES = {"memory": memory, "folder": folder, "objects": objects, "nats": broker, "wss": websocket}


@pytest.fixture(params=PLACES)
def place(request, tmp_path) -> Iterator[Place]:
    for found in PLACES[request.param](tmp_path):
        try:
            yield found
        finally:
            for side in found.opened:
                side.close()


def test_every_exchange_is_held_to_this_contract():
    assert set(kinds("exchange")) <= set(PLACES)


def model(value: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(30, 40, generator=generator) * value,
        "b": torch.randn((), generator=generator),
    }


def update(site: str = "north", round: int = 1, plus: float = 1.0, **changes: Any) -> Update:
    weights = model()
    local = {name: tensor + plus for name, tensor in weights.items()}
    fields = {"site": site, "round": round, "delta": Difference(local, weights), "examples": 12}
    return Update(**{**fields, "scalars": {"val/dice": 0.5}, **changes})


def started(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


def result(waiting: tuple[threading.Thread, list[Any]]) -> Any:
    thread, found = waiting
    thread.join(PATIENCE_S)
    assert found, "it waited forever"
    return found[0]


def test_a_site_waits_for_the_first_model_and_gets_its_bits(place):
    hub, site = place.hub(), place.site("north")
    waiting = started(lambda: site.fetch("north", 0))
    size = hub.publish(
        GlobalModel(0, model(), ("north",), study=STUDY, groups={"control": {"b": torch.ones(())}})
    )
    found = result(waiting)
    assert (found.round, found.participants, found.final, found.study) == (0, ("north",), False, STUDY)
    assert digest(found.weights) == digest(model())
    assert torch.equal(found.groups["control"]["b"], torch.ones(()))
    assert size > 30 * 40 * 4


def test_fetch_returns_the_newest_model_of_at_least_the_round(place):
    hub, site = place.hub(), place.site("north")
    for round in (0, 1, 2):
        hub.publish(GlobalModel(round, model(round + 1), study=STUDY))
    found = site.fetch("north", 1)
    assert found.round == 2
    assert digest(found.weights) == digest(model(3))
    waiting = started(lambda: site.fetch("north", 3))
    hub.publish(GlobalModel(3, model(4), (), final=True, study=STUDY))
    assert result(waiting).final


def test_a_model_stays_readable_when_newer_ones_have_come(place):
    hub, site = place.hub(), place.site("north")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    first = site.fetch("north", 0)
    for round in (1, 2, 3):
        hub.publish(GlobalModel(round, model(round + 1), study=STUDY))
        site.fetch("north", round)
    assert digest(first.weights) == digest(model())


def test_an_update_arrives_with_every_bit(place):
    hub, site = place.hub(), place.site("north")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    site.fetch("north", 0)
    site.send(update(groups={"control": {"b": torch.full((), 2.0)}}))
    (received,) = hub.collect(1, ["north"], PATIENCE_S)
    found = received.update
    assert received.error is None
    assert (found.site, found.round, found.examples, found.scalars) == ("north", 1, 12, {"val/dice": 0.5})
    assert received.bytes_up > 30 * 40 * 4
    for name, tensor in model().items():
        # By hand: local is float32(w + 1), and the difference to w is computed in float64.
        assert torch.equal(found.delta[name], (tensor + 1).double() - tensor.double())
    assert torch.equal(found.groups["control"]["b"], torch.full((), 2.0))


def test_sending_twice_equals_sending_once_and_the_first_counts(place):
    hub, site = place.hub(), place.site("north")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    site.fetch("north", 0)
    site.send(update(plus=1.0))
    site.send(update(plus=2.0))
    (received,) = hub.collect(1, ["north"], PATIENCE_S)
    assert torch.equal(received.update.delta["b"], (model()["b"] + 1).double() - model()["b"].double())


def test_updates_are_yielded_once_per_site_as_they_arrive(place):
    hub, north, south = place.hub(), place.site("north"), place.site("south")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    south.send(update("south"))
    results = hub.collect(1, ["south", "north"], PATIENCE_S)
    assert next(results).site == "south"
    north.send(update("north"))
    assert [received.site for received in results] == ["north"]


def test_who_has_not_answered_at_the_deadline_is_left_out(place):
    hub, site = place.hub(), place.site("north")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    site.send(update())
    assert [received.site for received in hub.collect(1, ["north", "south"], 0.5)] == ["north"]


def test_an_update_for_another_round_is_no_answer(place):
    hub, site = place.hub(), place.site("north")
    hub.publish(GlobalModel(1, model(), study=STUDY))
    site.send(update(round=1))
    assert list(hub.collect(2, ["north"], 0.5)) == []
    site.send(update(round=2))
    assert [received.update.round for received in hub.collect(2, ["north"], PATIENCE_S)] == [2]


def test_a_site_that_withdraws_is_not_waited_for(place):
    hub, site = place.hub(), place.site("north")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    site.withdraw("north", "its disk is full")
    (received,) = hub.collect(1, ["north"], PATIENCE_S)
    assert received.update is None
    assert received.bytes_up == 0
    with pytest.raises(SiteError, match="site 'north', round 1: its disk is full"):
        raise received.error


def test_an_update_of_another_study_is_refused_and_the_round_goes_on(place, tmp_path):
    hub, south = place.hub(), place.site("south")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    # Sent by a site whose study file differs after the digest's first characters, as an
    # attacker could arrange.
    south._study = STUDY[:-4] + "0000"
    south.send(update("south"))
    south._study = STUDY
    (received,) = hub.collect(1, ["south"], PATIENCE_S)
    assert received.update is None
    assert "belongs to study" in str(received.error)


def test_closing_lets_a_waiting_site_go(place):
    hub, site = place.hub(), place.site("north")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    waiting = started(lambda: site.fetch("north", 1))
    hub.close()
    place.opened.remove(hub)
    with pytest.raises(
        ExchangeError, match="site 'north' waits for round 1, but the hub has closed the study"
    ):
        raise result(waiting)


def lasting(place: Place) -> None:
    if not place.lasting:
        pytest.skip("an exchange within one process ends with it")


def killed(place: Place, side: Any) -> None:
    """End a side as a kill would: no message is sent, and the lock is released."""
    side._presence.stop() if hasattr(side, "_presence") else None
    side._store.close()
    side._lock.close()
    place.opened.remove(side)


def test_a_hub_that_comes_back_finds_what_was_sent_meanwhile(place):
    lasting(place)
    hub, site = place.hub(), place.site("north")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    site.fetch("north", 0)
    killed(place, hub)
    site.send(update())
    hub = place.hub()
    hub.publish(GlobalModel(0, model(), study=STUDY))
    assert [received.update.site for received in hub.collect(1, ["north"], PATIENCE_S)] == ["north"]


def test_a_site_that_comes_back_goes_on_in_the_current_round(place):
    lasting(place)
    hub, site = place.hub(), place.site("north")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    site.fetch("north", 0)
    killed(place, site)
    began = time.monotonic()
    site = place.site("north")
    assert site.fetch("north", 0).round == 0
    assert time.monotonic() - began < 5
    site.send(update())
    assert [received.update.site for received in hub.collect(1, ["north"], PATIENCE_S)] == ["north"]


def test_a_site_killed_after_its_update_left_may_train_that_round_again(place):
    lasting(place)
    hub, site = place.hub(), place.site("north")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    site.fetch("north", 0)
    site.send(update())
    assert len(list(hub.collect(1, ["north"], PATIENCE_S))) == 1
    killed(place, site)
    hub.publish(GlobalModel(1, model(2), study=STUDY))
    site = place.site("north")
    # Its checkpoint is from before round 1: it gets that model again, so that its optimiser sees
    # the same steps.
    assert digest(site.fetch("north", 0).weights) == digest(model())
    site.send(update(plus=5.0))
    assert digest(site.fetch("north", 1).weights) == digest(model(2))


def test_a_new_run_of_the_same_study_takes_nothing_from_the_one_before(place, tmp_path):
    lasting(place)
    hub, site = place.hub(), place.site("north")
    hub.publish(GlobalModel(0, model(), study=STUDY))
    site.fetch("north", 0)
    site.send(update())
    killed(place, hub)
    for path in (tmp_path / "hub" / "exchange").iterdir():
        path.unlink() if path.is_file() else None
    hub = place.hub()
    hub.publish(GlobalModel(0, model(), study=STUDY))
    assert list(hub.collect(1, ["north"], 0.5)) == []


def test_a_site_that_knows_no_study_is_shown_the_one_on_offer(place):
    lasting(place)
    hub = place.hub()
    hub.advertise_study("rounds: 3\n")
    assert place.advertised_study() == (STUDY, "rounds: 3\n")
    assert place.site("north").study_text() == "rounds: 3\n"


def test_a_second_process_of_one_site_is_refused(place):
    lasting(place)
    place.hub()
    place.site("north")
    with pytest.raises(ExchangeError, match="site 'north' already runs with this folder"):
        place.site("north")


# ------------------------------------------------------------------------------------------------ messages


def begun(place: Place, *sites: str) -> list[Any]:
    """Return the hub and the sites, having all received the untrained model."""
    hub, *sides = place.hub(), *(place.site(name) for name in sites)
    hub.publish(GlobalModel(0, model(), study=STUDY))
    for name, side in zip(sites, sides, strict=True):
        side.fetch(name, 0)
    return [hub, *sides]


def test_messages_go_both_ways_and_a_site_waits_for_its_own(place):
    hub, north, south = begun(place, "north", "south")
    north.send_message("north", 1, 1, "keys", b"from north")
    south.send_message("south", 1, 1, "keys", b"\x00\xff from south")
    found = {
        one.site: one.message.data
        for one in hub.collect_messages(1, 1, "keys", ["north", "south"], PATIENCE_S)
    }
    assert found == {"north": b"from north", "south": b"\x00\xff from south"}
    waiting = started(lambda: north.receive_message("north", 1, {"keys": 1}))
    assert (
        hub.send_messages(1, 1, "keys", {"north": b"to north", "south": b"to south"})["south"] == b"to south"
    )
    assert result(waiting).data == b"to north"
    message = south.receive_message("south", 1, {"keys": 1})
    assert (message.data, message.when, message.step, message.party) == (b"to south", (1, 1), "keys", "hub")


def test_the_first_message_of_a_step_counts_on_both_sides(place):
    hub, north = begun(place, "north")
    north.send_message("north", 1, 1, "keys", b"first")
    north.send_message("north", 1, 1, "keys", b"second")
    (found,) = hub.collect_messages(1, 1, "keys", ["north"], PATIENCE_S)
    assert found.message.data == north.sent_message("north", "keys").data == b"first"
    assert hub.send_messages(1, 1, "keys", {"north": b"first"}) == {"north": b"first"}
    assert hub.send_messages(1, 1, "keys", {"north": b"second"}) == {"north": b"first"}
    assert hub.sent_messages("keys") == ((1, 1), {"north": b"first"})
    assert north.receive_message("north", 1, {"keys": 1}).data == b"first"


def test_a_message_of_another_step_attempt_or_round_is_not_the_one(place):
    hub, north = begun(place, "north")
    north.send_message("north", 1, 1, "keys", b"one")
    for round, attempt, step in ((1, 1, "shares"), (1, 2, "keys"), (2, 1, "keys")):
        assert list(hub.collect_messages(round, attempt, step, ["north"], 0.3)) == []
    hub.send_messages(1, 1, "keys", {"north": b"one"})
    hub.send_messages(1, 2, "call", {"north": b"again"})
    assert north.receive_message("north", 1, {"keys": 2, "call": 2}).data == b"again"
    north.send_message("north", 1, 2, "keys", b"two")
    assert [one.message.data for one in hub.collect_messages(1, 2, "keys", ["north"], PATIENCE_S)] == [b"two"]


def test_a_site_stops_waiting_for_a_message_when_the_round_is_over(place):
    hub, north = begun(place, "north")
    waiting = started(lambda: (north.receive_message("north", 1, {"keys": 1}), "over"))
    hub.publish(GlobalModel(1, model(2), study=STUDY))
    assert result(waiting) == (None, "over")


def test_a_site_that_waits_for_a_message_is_let_go_when_the_hub_closes(place):
    hub, north = begun(place, "north")
    waiting = started(lambda: north.receive_message("north", 1, {"keys": 1}))
    hub.close()
    place.opened.remove(hub)
    with pytest.raises(ExchangeError, match="the hub has closed"):
        raise result(waiting)


def test_a_site_that_withdraws_is_not_waited_for_in_a_step(place):
    hub, north = begun(place, "north")
    north.withdraw("north", "its disk is full")
    (found,) = hub.collect_messages(1, 1, "keys", ["north"], PATIENCE_S)
    with pytest.raises(SiteError, match="site 'north', round 1: its disk is full"):
        raise found.error


def test_a_message_that_was_handed_on_shows_who_wrote_it(place):
    hub, north, south = begun(place, "north", "south")
    north.send_message("north", 1, 1, "keys", b"from north")
    (found,) = hub.collect_messages(1, 1, "keys", ["north"], PATIENCE_S)
    assert south.open_message("south", found.sealed, "north").data == b"from north"
    with pytest.raises(WireError, match="south"):
        south.open_message("south", found.sealed, "south")
    if south.signed:
        with pytest.raises(WireError, match="its signature by 'north' is invalid"):
            south.open_message("south", found.sealed.replace(b'"round":1', b'"round":2'), "north")
    assert south.signed == (type(south).__name__ == "MemoryExchange" or "nats" in str(type(south._store)))


def test_an_update_that_was_taken_back_can_be_replaced(place):
    hub, north = begun(place, "north")
    north.send(update(plus=1.0))
    north.retract("north", 1)
    assert list(hub.collect(1, ["north"], 0.3)) == []
    north.send(update(plus=2.0))
    (received,) = hub.collect(1, ["north"], PATIENCE_S)
    assert torch.equal(received.update.delta["b"], (model()["b"] + 2).double() - model()["b"].double())


def test_both_sides_know_their_messages_after_a_restart(place):
    lasting(place)
    hub, north = begun(place, "north")
    north.send_message("north", 1, 1, "keys", b"first")
    hub.send_messages(1, 1, "keys", {"north": b"first"})
    killed(place, hub)
    killed(place, north)
    hub, north = place.hub(), place.site("north")
    north.send_message("north", 1, 1, "keys", b"second")
    assert north.sent_message("north", "keys").data == b"first"
    assert hub.send_messages(1, 1, "keys", {"north": b"second"}) == {"north": b"first"}
    assert [one.message.data for one in hub.collect_messages(1, 1, "keys", ["north"], PATIENCE_S)] == [
        b"first"
    ]
    assert north.receive_message("north", 1, {"keys": 1}).data == b"first"


@pytest.mark.parametrize("name", ["hub", "broker", "a/b", "..", "a b", ""])
def test_a_name_that_could_be_a_path_is_refused(tmp_path, name):
    place = over(Folder(url=str(tmp_path / "share"), poll_s=0.02), tmp_path)
    with pytest.raises(ExchangeError, match="a site's name is 1 to 64 letters"):
        place.site(name)
