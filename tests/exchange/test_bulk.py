"""The connection for chunks, at a real broker and at what is none."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from medfed.exchange._bulk import Bulk
from medfed.exchange._depot import Missing, Unreachable, chunk_name, global_prefix, update_prefix
from medfed.exchange.nats import NatsDepot
from medfed.signing import Identity

STUDY = "34" * 32


@pytest.fixture
def depots(enrolment):
    """The hub's and north's depots at a broker."""
    enrolment.start()
    made = [
        NatsDepot([enrolment.url], Identity(enrolment.credentials(party)), STUDY)
        for party in ("hub", "north")
    ]
    until(lambda: made[0].put("glob/newest/x/m", b"a stream for models"))
    made[0].get(f"up/{STUDY[:16]}/north/here/m")  # and one for north's updates
    yield made
    for depot in made:
        depot.close()


def until(call) -> None:
    """Do it as soon as the broker is up."""
    end = time.monotonic() + 20
    while True:
        try:
            return call()
        except Unreachable:
            assert time.monotonic() < end, "the broker does not come up"
            time.sleep(0.05)


def chunks(prefix: str) -> dict[str, bytes]:
    """Chunks of many lengths, one of none, with what the protocol itself says in them."""
    contents = [b"", b"\r\n", b"PING\r\n-ERR 'no'\r\n", *(bytes([n]) * (n * 70_001) for n in range(1, 15))]
    return {chunk_name(prefix, n, "0" * 64): content for n, content in enumerate(contents)}


def test_chunks_arrive_whole_in_both_directions(depots):
    hub, north = depots
    for sender, reader, prefix in (
        (hub, north, global_prefix(STUDY, 0)),
        (north, hub, update_prefix(STUDY, "north", 1)),
    ):
        sent, stored, got = chunks(prefix), [], {}
        sender.put_many(((name, memoryview(data)) for name, data in sent.items()), stored.append)
        reader.get_many(list(sent), lambda name, data, got=got: got.update({name: bytes(data)}))
        assert set(stored) == set(sent)
        assert got == sent
        assert sender._bulk is not None
        assert reader._bulk is not None


def test_a_missing_chunk_is_missing_and_the_next_call_goes_on(depots):
    hub, north = depots
    sent = chunks(global_prefix(STUDY, 0))
    hub.put_many(sent.items(), lambda name: None)
    name = chunk_name(global_prefix(STUDY, 0), 99, "0" * 64)
    with pytest.raises(Missing, match="chunk 99 is not at the broker"):
        north.get_many([*sent, name, *sent], lambda name, data: None)
    got = []
    north.get_many(list(sent), lambda name, data: got.append(name))
    assert sorted(got) == sorted(sent)


def test_what_the_broker_forbids_is_said(depots):
    _, north = depots
    name = chunk_name(update_prefix(STUDY, "south", 1), 0, "0" * 64)
    with pytest.raises(Unreachable, match="the broker refuses: 'Permissions Violation for Publish"):
        north.put_many([(name, b"x")], lambda name: None)


def test_an_error_of_ones_own_disk_is_not_the_brokers(depots):
    hub, north = depots
    sent = chunks(global_prefix(STUDY, 0))
    hub.put_many(sent.items(), lambda name: None)

    def take(name, data):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        north.get_many(list(sent), take)


def test_a_connection_that_was_idle_is_made_anew(depots):
    hub, _ = depots
    sent = chunks(global_prefix(STUDY, 0))
    hub.put_many(sent.items(), lambda name: None)
    first = hub._bulk
    hub.put_many(sent.items(), lambda name: None)
    assert hub._bulk is first
    first.used_s -= 61
    first._socket.close()  # as the server does with one that does not answer its pings
    hub.put_many(sent.items(), lambda name: None)
    assert hub._bulk is not first


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "no NATS server"),
        (b"INFO {", "ended the connection before its greeting"),
        (b"INFO {}\r\nno TLS at all", "ended the connection"),
    ],
)
def test_what_answers_as_no_broker_does_is_refused(enrolment, said, told):
    listening = socket.create_server(("127.0.0.1", 0))

    def answer():
        with listening.accept()[0] as one:
            one.sendall(said)

    threading.Thread(target=answer, daemon=True).start()
    hub = NatsDepot([enrolment.url], Identity(enrolment.credentials("hub")), STUDY)
    with listening, pytest.raises(Unreachable, match=told):
        Bulk(f"tls://127.0.0.1:{listening.getsockname()[1]}", hub._tls(), "hub", 5, 5, 8)
    hub.close()


def test_a_broker_that_is_not_there_is_said_at_once_and_with_its_address(enrolment):
    hub = NatsDepot([enrolment.url], Identity(enrolment.credentials("hub")), STUDY)
    began = time.monotonic()
    with pytest.raises(Unreachable, match=rf"no connection to the broker at {enrolment.url}: .*refused"):
        hub.get("glob/newest/study/m")
    assert time.monotonic() - began < 5  # the client alone goes on trying without a word
    hub.close()


def test_a_connection_that_is_lost_at_that_moment_is_tried_again_later(depots, monkeypatch):
    hub, _ = depots
    monkeypatch.setattr(type(hub._client), "connected_url", None)
    with pytest.raises(Unreachable, match="no connection to the broker at tls://"):
        hub.put_many(chunks(global_prefix(STUDY, 0)).items(), lambda name: None)
