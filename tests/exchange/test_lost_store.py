"""A store that is emptied while a study runs: hub and sites store again what is still needed."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable

import pytest
from broker_enrolment import Enrolment
from chunked_updates import PATIENCE_S, STUDY, filled, filled_update

from medfed.exchange import _hub_transport, _site_transport
from medfed.exchange._object_store import Unreachable
from medfed.exchange.folder import Folder
from medfed.exchange.nats import Nats
from medfed.wire.update import GlobalModel
from medfed.wire.weights import digest


@pytest.fixture(params=["folder", pytest.param("nats", marks=pytest.mark.slow)])
def parties(request, tmp_path, monkeypatch):
    """Return a hub, a site that has round 0's model, and what deletes everything that the store holds."""
    for module in (_hub_transport, _site_transport):
        monkeypatch.setattr(module, "CHECK_STORE_S", 0.2)
    enrolment = Enrolment(tmp_path, sites=("north",)) if request.param == "nats" else None
    exchanges, lose = (folder_exchanges if enrolment is None else nats_exchanges)(tmp_path, enrolment)
    hub = exchanges["hub"].open_hub(STUDY, tmp_path / "hub-run")
    hub.advertise_study("name: a-study", ["north"])
    hub.publish(GlobalModel(0, filled(0.0), study_digest=STUDY))
    north = exchanges["north"].open_site(STUDY, "north", tmp_path / "north-run")
    assert north.fetch("north", 0).round == 0
    yield hub, north, lose
    north.close()
    hub.disconnect()
    if enrolment is not None:
        enrolment.end()


def folder_exchanges(tmp_path, enrolment) -> tuple[dict, Callable[[], None]]:
    share = tmp_path / "share"

    def lose() -> None:
        share.rename(tmp_path / "gone")  # at once: a heartbeat may be being written into it

    return dict.fromkeys(("hub", "north"), Folder(url=str(share), poll_s=0.01)), lose


def nats_exchanges(tmp_path, enrolment) -> tuple[dict, Callable[[], None]]:
    enrolment.start()

    def lose() -> None:
        enrolment.brokers[-1].stop()
        shutil.rmtree(enrolment.authority / "broker" / "store")
        enrolment.start()

    records = {
        party: Nats(credentials=str(enrolment.credentials(party)), urls=[enrolment.url])
        for party in ("hub", "north")
    }
    return records, lose


def in_background(call: Callable[[], object]) -> Callable[[], object]:
    """Start a call in a thread, and return what waits for its result."""
    results: list = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()

    def result() -> object:
        thread.join(PATIENCE_S)
        assert results, "it did not return"
        return results[0]

    return result


def test_a_lost_model_is_published_again_and_an_update_sent_after_it_arrives(parties, tmp_path, caplog):
    hub, north, lose = parties
    lose()
    collected = in_background(lambda: list(hub.collect(1, ["north"], PATIENCE_S)))
    shutil.rmtree(tmp_path / "north-run/exchange/inbox")
    assert digest(north.fetch("north", 0).weights) == digest(filled(0.0))
    assert north.study_text() == "name: a-study"
    north.send(filled_update(1.5))
    (arrival,) = collected()
    assert digest(arrival.update.delta.minuend) == digest(filled(1.5))
    assert "what it published is no longer there; it publishes round 0 again" in caplog.text


def test_a_lost_update_is_sent_again(parties):
    hub, north, lose = parties
    north.send(filled_update(1.5))
    lose()
    fetched = in_background(lambda: north.fetch("north", 1))
    (arrival,) = hub.collect(1, ["north"], PATIENCE_S)
    assert digest(arrival.update.delta.minuend) == digest(filled(1.5))
    hub.publish(GlobalModel(1, filled(1.0), study_digest=STUDY))
    assert fetched().round == 1


def test_lost_messages_of_both_sides_are_sent_again(parties):
    hub, north, lose = parties
    north.send_message("north", 1, 0, "keys", b"from north")
    hub.send_messages(1, 0, "list", {"north": b"from the hub"})
    lose()
    collected = in_background(lambda: list(hub.collect_messages(1, 0, "keys", ["north"], PATIENCE_S)))
    assert north.receive_message("north", 1, {"list": 0}).data == b"from the hub"
    answered = in_background(lambda: north.receive_message("north", 1, {"next": 0}))
    (message,) = collected()
    assert message.message.data == b"from north"
    hub.send_messages(1, 0, "next", {"north": b"go on"})
    assert answered().data == b"go on"


def test_chunks_that_are_lost_while_a_model_is_published_are_stored_again(parties, tmp_path, monkeypatch):
    hub, north, lose = parties
    losses = iter([lose])
    # The hub makes sure of its own copy after the chunks and before the manifest.
    hub.publish(GlobalModel(1, filled(1.0), study_digest=STUDY), lambda: next(losses, lambda: None)())
    in_background(lambda: list(hub.collect(2, ["north"], 5)))
    assert digest(north.fetch("north", 1).weights) == digest(filled(1.0))


def test_an_older_model_in_the_place_of_the_newest_is_replaced(parties, caplog):
    # As a broker shows it that lost what it stored last: the message before it is there again.
    hub, north, _ = parties
    name = hub._objects.hub_object("current")
    older = hub._store.get(name)
    hub.publish(GlobalModel(1, filled(1.0), study_digest=STUDY))
    newest = hub._store.get(name)
    hub._store.put(name, older)
    collected = in_background(lambda: list(hub.collect(2, ["north"], PATIENCE_S)))
    assert north.fetch("north", 1).round == 1
    north.send(filled_update(2.5, round=2))
    (arrival,) = collected()
    assert arrival.update.round == 2
    assert hub._store.get(name) == newest
    assert "what it published is no longer there; it publishes round 1 again" in caplog.text


def test_a_hub_that_was_left_behind_does_not_replace_a_newer_model(parties):
    hub, _, _ = parties
    before = hub._current, hub._sealed
    hub.publish(GlobalModel(1, filled(1.0), study_digest=STUDY))
    newest = hub._store.get(hub._objects.hub_object("current"))
    hub._current, hub._sealed = before  # as a process that was stopped while another one went on
    hub._next_check = 0.0
    hub._restore_lost()
    assert hub._store.get(hub._objects.hub_object("current")) == newest


def test_a_chunk_that_is_lost_under_a_manifest_is_published_again_for_the_site_that_lacks_it(
    parties, tmp_path, caplog, monkeypatch
):
    hub, north, _ = parties
    for name, value in (("heartbeat_s", 0.2), ("settle_s", 0.0)):
        monkeypatch.setattr(hub._store, name, value)
        monkeypatch.setattr(north._store, name, value)
    hub.publish(GlobalModel(1, filled(1.0), study_digest=STUDY))
    hub._store.delete_update(f"{hub._objects.global_prefix(1)}/c")
    collected = in_background(lambda: list(hub.collect(2, ["north"], PATIENCE_S)))
    assert digest(north.fetch("north", 1).weights) == digest(filled(1.0))
    north.send(filled_update(2.5, round=2))
    assert len(collected()) == 1
    assert "north finds no whole model; it publishes round 1 again" in caplog.text


def test_a_site_that_says_again_and_again_that_it_lacks_a_model_gets_it_some_times(parties, monkeypatch):
    hub, _, _ = parties
    monkeypatch.setattr(_hub_transport, "REPEAT_S", 0.0)
    published = []
    monkeypatch.setattr(hub, "publish", lambda model: published.append(model.round))
    monkeypatch.setattr(hub._heartbeats, "lacking", lambda round: "north")
    monkeypatch.setattr(hub._store, "settle_s", 0.0)
    hub._next_repeat = 0.0
    for _ in range(20):
        hub._next_check = 0.0
        hub._restore_lost()
    assert published == [0] * 5


def test_older_messages_in_the_place_of_the_newest_are_replaced(parties):
    hub, north, _ = parties
    north.send_message("north", 1, 0, "keys", b"old")
    hub.send_messages(1, 0, "list", {"north": b"old"})
    names = north._objects.site_object("north", "l-keys"), hub._objects.hub_object("l-list-north")
    older = north._store.get(names[0]), hub._store.get(names[1])
    north.send_message("north", 1, 1, "keys", b"from north")
    hub.send_messages(1, 1, "list", {"north": b"from the hub"})
    north._store.put(names[0], older[0])
    hub._store.put(names[1], older[1])
    collected = in_background(lambda: list(hub.collect_messages(1, 1, "keys", ["north"], PATIENCE_S)))
    assert north.receive_message("north", 1, {"list": 1}).data == b"from the hub"
    (message,) = collected()
    assert message.message.data == b"from north"


def test_chunks_that_are_lost_between_two_attempts_to_send_an_update_are_stored_again(parties, monkeypatch):
    """The store is lost after the chunks, and the attempt fails before the manifest."""
    hub, north, lose = parties
    put, losses = north._store.put, iter([lose])

    def fails_once(name, data, if_absent=False):
        if name.endswith("/m") and (lose := next(losses, None)):
            lose()
            raise Unreachable("the connection to the broker was lost")
        return put(name, data, if_absent)

    monkeypatch.setattr(north._store, "put", fails_once)
    collected = in_background(lambda: list(hub.collect(1, ["north"], PATIENCE_S)))
    north.send(filled_update(1.5))
    (arrival,) = collected()
    assert arrival.error is None
    assert digest(arrival.update.delta.minuend) == digest(filled(1.5))
