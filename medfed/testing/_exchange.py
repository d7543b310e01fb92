"""The contract of an exchange.

Every bit arrives, once; whoever waits is let go; parties that restart go on; messages reach their recipient.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch

from medfed.errors import ExchangeError, SiteError, UpdateError, WireError
from medfed.exchange import DropOut, HubSide, Offer, SiteSide
from medfed.testing._contract import Contract, NotApplicable, raises
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference, Weights, digest

# Long enough for a slow machine, so that a party that waits forever fails instead of hanging.
PATIENCE_S = 60
# How long the hub waits for what must not come.
SHORT_S = 0.4


class OpenableExchange(Protocol):
    """An exchange: a record of the registry, or an object that opens its sides."""

    def open_hub(self, study_digest: str, folder: Path) -> HubSide: ...

    def open_site(self, study_digest: str, site: str, folder: Path) -> SiteSide: ...

    def offered_studies(self, site: str) -> Sequence[Offer]: ...


class Parties:
    """The hub and the sites of a new study over an exchange; each keeps its folder when opened again."""

    def __init__(self, exchange: OpenableExchange, folder: Path) -> None:
        self.exchange, self.folder = exchange, folder
        self.study = secrets.token_hex(32)
        self.opened: list[Any] = []

    def hub(self, folder: str = "hub") -> Any:
        return self._opened(self.exchange.open_hub(self.study, self.folder / folder))

    def site(self, name: str) -> Any:
        return self._opened(self.exchange.open_site(self.study, name, self.folder / name))

    def _opened(self, side: Any) -> Any:
        self.opened.append(side)
        return side

    def with_first_model(self, *sites: str) -> list[Any]:
        """Return the hub and the sites, which have received the untrained model."""
        hub, *sides = self.hub(), *(self.site(name) for name in sites)
        hub.publish(self.model(0))
        for name, side in zip(sites, sides, strict=True):
            side.fetch(name, 0)
        return [hub, *sides]

    def model(self, round: int, *, final: bool = False) -> GlobalModel:
        """Return the model of a round; each round's weights differ."""
        return GlobalModel(round, weights(round + 1), study_digest=self.study, final=final)

    def close(self, side: Any) -> None:
        side.close()
        self.opened.remove(side)

    def end(self, side: Any) -> None:
        """End a party's process without a message to the others."""
        getattr(side, "disconnect", side.close)()
        self.opened.remove(side)

    def require_restarts(self) -> None:
        """Skip the check for an exchange within one process."""
        hub = self.hub()
        lasting = hasattr(hub, "disconnect")
        self.end(hub) if lasting else None
        if not lasting:
            raise NotApplicable("its hub's side has no `disconnect`, so it ends with its process")


check_exchange: Contract[OpenableExchange] = Contract("exchange")


def in_a_new_study(check: Callable[[Parties], None]) -> Callable[[OpenableExchange], None]:
    """Add a check, which is given the parties of a study of its own."""

    @wraps(check)
    def run(exchange: OpenableExchange) -> None:
        with TemporaryDirectory() as folder:
            parties = Parties(exchange, Path(folder))
            try:
                check(parties)
            finally:
                for side in parties.opened:
                    side.close()

    return check_exchange.check(run)


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(30, 40, generator=generator) * value,
        "b": torch.randn((), generator=generator),
    }


BYTES = 30 * 40 * 4


def update(site: str = "north", round: int = 1, plus: float = 1.0, **groups: Weights) -> Update:
    local = {name: tensor + plus for name, tensor in weights().items()}
    return Update(site, round, Difference(local, weights()), 12, {"val/dice": 0.5}, groups)


def sent_difference(plus: float) -> torch.Tensor:
    """Return what the hub reads of 'b': local is float32(w + plus), and the difference is in float64."""
    tensor = weights()["b"]
    return (tensor + plus).double() - tensor.double()


class Waiting:
    """A call in a thread of its own, whose result is awaited for a limited time."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._outcome: list[tuple[Any, Exception | None]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append((self._call(), None))
        except Exception as error:  # noqa: BLE001 - handed to the checking thread
            self._outcome.append((None, error))

    def result(self) -> Any:
        self._thread.join(PATIENCE_S)
        assert self._outcome, "it waited forever"
        value, error = self._outcome[0]
        if error is not None:
            raise error
        return value


def sites_of(received: Any) -> list[str]:
    return [one.site for one in received]


@in_a_new_study
def a_site_waits_for_the_first_model_and_gets_its_bits(parties: Parties) -> None:
    hub, site = parties.hub(), parties.site("north")
    waiting = Waiting(lambda: site.fetch("north", 0))
    control = {"control": {"b": torch.ones(())}}
    size = hub.publish(GlobalModel(0, weights(), ("north",), study_digest=parties.study, groups=control))
    model = waiting.result()
    assert (model.round, model.participants, model.final) == (0, ("north",), False)
    assert model.study_digest == parties.study
    assert digest(model.weights) == digest(weights())
    assert torch.equal(model.groups["control"]["b"], torch.ones(()))
    assert size > BYTES


@in_a_new_study
def fetch_returns_the_newest_model_of_at_least_the_round(parties: Parties) -> None:
    hub, site = parties.hub(), parties.site("north")
    for round in (0, 1, 2):
        hub.publish(parties.model(round))
    model = site.fetch("north", 1)
    assert model.round == 2
    assert digest(model.weights) == digest(weights(3))
    waiting = Waiting(lambda: site.fetch("north", 3))
    hub.publish(parties.model(3, final=True))
    assert waiting.result().final


@in_a_new_study
def a_model_stays_readable_when_newer_ones_have_come(parties: Parties) -> None:
    hub, site = parties.hub(), parties.site("north")
    hub.publish(parties.model(0))
    first = site.fetch("north", 0)
    for round in (1, 2, 3):
        hub.publish(parties.model(round))
        site.fetch("north", round)
    assert digest(first.weights) == digest(weights())


@in_a_new_study
def an_update_arrives_with_every_bit(parties: Parties) -> None:
    hub, site = parties.with_first_model("north")
    site.send(update(control={"b": torch.full((), 2.0)}))
    (received,) = hub.collect(1, ["north"], PATIENCE_S)
    arrived = received.update
    assert received.error is None
    assert (arrived.site, arrived.round, arrived.examples) == ("north", 1, 12)
    assert arrived.scalars == {"val/dice": 0.5}
    assert received.bytes_up > BYTES
    for name, tensor in weights().items():
        assert torch.equal(arrived.delta[name], (tensor + 1).double() - tensor.double())
    assert torch.equal(arrived.groups["control"]["b"], torch.full((), 2.0))


@in_a_new_study
def sending_twice_equals_sending_once_and_the_first_counts(parties: Parties) -> None:
    hub, site = parties.with_first_model("north")
    site.send(update(plus=1.0))
    site.send(update(plus=2.0))
    (received,) = hub.collect(1, ["north"], PATIENCE_S)
    assert torch.equal(received.update.delta["b"], sent_difference(1.0))


@in_a_new_study
def updates_are_yielded_once_per_site_as_they_arrive(parties: Parties) -> None:
    hub, north, south = parties.hub(), parties.site("north"), parties.site("south")
    hub.publish(parties.model(0))
    south.send(update("south"))
    received = hub.collect(1, ["south", "north"], PATIENCE_S)
    assert next(received).site == "south"
    north.send(update("north"))
    assert sites_of(received) == ["north"]


@in_a_new_study
def a_site_that_is_silent_at_the_deadline_is_left_out(parties: Parties) -> None:
    hub, site = parties.hub(), parties.site("north")
    hub.publish(parties.model(0))
    site.send(update())
    assert sites_of(hub.collect(1, ["north", "south"], SHORT_S)) == ["north"]


@in_a_new_study
def an_update_for_another_round_is_no_answer(parties: Parties) -> None:
    hub, site = parties.hub(), parties.site("north")
    hub.publish(parties.model(1))
    site.send(update(round=1))
    assert sites_of(hub.collect(2, ["north"], SHORT_S)) == []
    site.send(update(round=2))
    assert [received.update.round for received in hub.collect(2, ["north"], PATIENCE_S)] == [2]


@in_a_new_study
def an_update_for_a_later_round_is_refused_at_once_and_when_its_round_comes(parties: Parties) -> None:
    hub, site = parties.with_first_model("north")
    site.send(update(round=3))
    (received,) = hub.collect(1, ["north"], PATIENCE_S)
    assert received.update is None
    assert received.bytes_up > 0  # it sent something, so it is no site that is silent
    with raises(UpdateError, "site 'north', round 1: it has already sent an update for round 3"):
        raise received.error
    hub.publish(parties.model(1))
    site.send(update(round=2))
    assert [one.update.round for one in hub.collect(2, ["north"], PATIENCE_S)] == [2]
    hub.publish(parties.model(2))
    assert [one for one in hub.collect(3, ["north"], SHORT_S) if one.update is not None] == []


@in_a_new_study
def a_site_that_drops_out_is_not_waited_for(parties: Parties) -> None:
    hub, site = parties.with_first_model("north")
    site.drop_out("north", DropOut.DISK)
    (received,) = hub.collect(1, ["north"], PATIENCE_S)
    assert received.update is None
    assert received.bytes_up == 0
    with raises(SiteError, "site 'north', round 1: its run folder cannot be read or written"):
        raise received.error


@in_a_new_study
def closing_lets_a_waiting_site_go(parties: Parties) -> None:
    hub, site = parties.with_first_model("north")
    waiting = Waiting(lambda: site.fetch("north", 1))
    parties.close(hub)
    with raises(ExchangeError, "site 'north' waits for round 1, but the hub has closed the study"):
        waiting.result()


# ------------------------------------------------------------------------------------------------ restarts


@in_a_new_study
def a_hub_that_restarts_finds_what_was_sent_meanwhile(parties: Parties) -> None:
    parties.require_restarts()
    hub, site = parties.with_first_model("north")
    parties.end(hub)
    site.send(update())
    hub = parties.hub()
    hub.publish(parties.model(0))
    assert sites_of(hub.collect(1, ["north"], PATIENCE_S)) == ["north"]


@in_a_new_study
def a_site_that_restarts_goes_on_in_the_current_round(parties: Parties) -> None:
    parties.require_restarts()
    hub, site = parties.with_first_model("north")
    parties.end(site)
    began = time.monotonic()
    site = parties.site("north")
    assert site.fetch("north", 0).round == 0
    assert time.monotonic() - began < 5
    site.send(update())
    assert sites_of(hub.collect(1, ["north"], PATIENCE_S)) == ["north"]


@in_a_new_study
def a_site_that_restarts_after_its_update_left_may_train_the_round_again(parties: Parties) -> None:
    parties.require_restarts()
    hub, site = parties.with_first_model("north")
    site.send(update())
    assert sites_of(hub.collect(1, ["north"], PATIENCE_S)) == ["north"]
    parties.end(site)
    hub.publish(parties.model(1))
    site = parties.site("north")
    # Its checkpoint is from before round 1: it gets that model again, so that its optimiser sees the same
    # steps.
    assert digest(site.fetch("north", 0).weights) == digest(weights())
    site.send(update(plus=5.0))
    assert digest(site.fetch("north", 1).weights) == digest(weights(2))


@in_a_new_study
def a_new_run_of_a_study_takes_nothing_from_the_one_before(parties: Parties) -> None:
    parties.require_restarts()
    hub, site = parties.with_first_model("north")
    site.send(update())
    parties.end(hub)
    hub = parties.hub("hub of a new run")
    hub.publish(parties.model(0))
    assert sites_of(hub.collect(1, ["north"], SHORT_S)) == []


@in_a_new_study
def a_site_that_knows_no_study_is_shown_the_one_that_is_offered_to_it(parties: Parties) -> None:
    parties.require_restarts()
    parties.hub().advertise_study("rounds: 3\n", ["north"])
    assert list(parties.exchange.offered_studies("north")) == [Offer(parties.study, "rounds: 3\n")]
    assert parties.site("north").study_text() == "rounds: 3\n"


@in_a_new_study
def a_second_process_of_one_site_is_refused(parties: Parties) -> None:
    parties.require_restarts()
    parties.hub()
    parties.site("north")
    with raises(ExchangeError, "site 'north' already runs with this folder"):
        parties.site("north")


# ------------------------------------------------------------------------------------------------ messages


def messages(
    hub: Any, round: int, attempt: int, step: str, *sites: str, deadline_s: float = PATIENCE_S
) -> Any:
    """Return the messages of a step by site."""
    received = hub.collect_messages(round, attempt, step, list(sites), deadline_s)
    return {one.site: one.message.data for one in received}


@in_a_new_study
def messages_go_both_ways_and_a_site_waits_for_its_own(parties: Parties) -> None:
    hub, north, south = parties.with_first_model("north", "south")
    north.send_message("north", 1, 1, "keys", b"from north")
    south.send_message("south", 1, 1, "keys", b"\x00\xff from south")
    expected = {"north": b"from north", "south": b"\x00\xff from south"}
    assert messages(hub, 1, 1, "keys", "north", "south") == expected
    waiting = Waiting(lambda: north.receive_message("north", 1, {"keys": 1}))
    answers = {"north": b"to north", "south": b"to south"}
    assert hub.send_messages(1, 1, "keys", answers) == answers
    assert waiting.result().data == b"to north"
    message = south.receive_message("south", 1, {"keys": 1})
    assert (message.data, message.when, message.step, message.party) == (b"to south", (1, 1), "keys", "hub")


@in_a_new_study
def the_first_message_of_a_step_counts_on_both_sides(parties: Parties) -> None:
    hub, north = parties.with_first_model("north")
    north.send_message("north", 1, 1, "keys", b"first")
    north.send_message("north", 1, 1, "keys", b"second")
    assert messages(hub, 1, 1, "keys", "north") == {"north": b"first"}
    assert north.sent_message("north", "keys").data == b"first"
    assert hub.send_messages(1, 1, "keys", {"north": b"first"}) == {"north": b"first"}
    assert hub.send_messages(1, 1, "keys", {"north": b"second"}) == {"north": b"first"}
    assert hub.sent_messages("keys") == ((1, 1), {"north": b"first"})
    assert north.receive_message("north", 1, {"keys": 1}).data == b"first"


@in_a_new_study
def a_message_of_another_step_attempt_or_round_is_not_the_one(parties: Parties) -> None:
    hub, north = parties.with_first_model("north")
    north.send_message("north", 1, 1, "keys", b"one")
    for round, attempt, step in ((1, 1, "shares"), (1, 2, "keys"), (2, 1, "keys")):
        assert messages(hub, round, attempt, step, "north", deadline_s=SHORT_S) == {}
    hub.send_messages(1, 1, "keys", {"north": b"one"})
    hub.send_messages(1, 2, "call", {"north": b"again"})
    assert north.receive_message("north", 1, {"keys": 2, "call": 2}).data == b"again"
    north.send_message("north", 1, 2, "keys", b"two")
    assert messages(hub, 1, 2, "keys", "north") == {"north": b"two"}


@in_a_new_study
def a_site_stops_waiting_for_a_message_when_the_round_is_over(parties: Parties) -> None:
    hub, north = parties.with_first_model("north")
    waiting = Waiting(lambda: north.receive_message("north", 1, {"keys": 1}))
    hub.publish(parties.model(1))
    assert waiting.result() is None


@in_a_new_study
def closing_lets_a_site_go_that_waits_for_a_message(parties: Parties) -> None:
    hub, north = parties.with_first_model("north")
    waiting = Waiting(lambda: north.receive_message("north", 1, {"keys": 1}))
    parties.close(hub)
    with raises(ExchangeError, "the hub has closed"):
        waiting.result()


@in_a_new_study
def a_site_that_drops_out_is_not_waited_for_in_a_step(parties: Parties) -> None:
    hub, north = parties.with_first_model("north")
    north.drop_out("north", DropOut.DISK)
    (received,) = hub.collect_messages(1, 1, "keys", ["north"], PATIENCE_S)
    with raises(SiteError, "site 'north', round 1: its run folder cannot be read or written"):
        raise received.error


@in_a_new_study
def a_forwarded_message_shows_who_wrote_it(parties: Parties) -> None:
    hub, north, south = parties.with_first_model("north", "south")
    north.send_message("north", 1, 1, "keys", b"from north")
    (received,) = hub.collect_messages(1, 1, "keys", ["north"], PATIENCE_S)
    assert south.open_message("south", received.sealed, "north").data == b"from north"
    with raises(WireError, "south"):
        south.open_message("south", received.sealed, "south")
    if south.signed:
        changed = received.sealed.replace(b'"round":1', b'"round":2')
        assert changed != received.sealed
        with raises(WireError, "its signature by 'north' is invalid"):
            south.open_message("south", changed, "north")


@in_a_new_study
def a_retracted_update_can_be_replaced(parties: Parties) -> None:
    hub, north = parties.with_first_model("north")
    north.send(update(plus=1.0))
    north.retract("north", 1)
    assert sites_of(hub.collect(1, ["north"], SHORT_S)) == []
    north.send(update(plus=2.0))
    (received,) = hub.collect(1, ["north"], PATIENCE_S)
    assert torch.equal(received.update.delta["b"], sent_difference(2.0))


@in_a_new_study
def both_sides_know_their_messages_after_a_restart(parties: Parties) -> None:
    parties.require_restarts()
    hub, north = parties.with_first_model("north")
    north.send_message("north", 1, 1, "keys", b"first")
    hub.send_messages(1, 1, "keys", {"north": b"first"})
    parties.end(hub)
    parties.end(north)
    hub, north = parties.hub(), parties.site("north")
    north.send_message("north", 1, 1, "keys", b"second")
    assert north.sent_message("north", "keys").data == b"first"
    assert hub.send_messages(1, 1, "keys", {"north": b"second"}) == {"north": b"first"}
    assert messages(hub, 1, 1, "keys", "north") == {"north": b"first"}
    assert north.receive_message("north", 1, {"keys": 1}).data == b"first"
