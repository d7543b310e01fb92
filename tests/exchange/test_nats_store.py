"""The store at a broker: how refusals are explained, and how its thread ends."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys

import pytest
from broker_enrolment import Enrolment

from medfed.exchange import _nats_connecting
from medfed.exchange._nats_cluster import Patience
from medfed.exchange._nats_connecting import answer_of
from medfed.exchange._nats_refusals import explain_refusal
from medfed.exchange._nats_store import NatsStore
from medfed.exchange._object_store import Unreachable
from medfed.exchange._protocol import Retry, WarnOnce
from medfed.exchange.nats import Nats
from medfed.wire.signing import Identity, serial_number


def test_a_refused_certificate_is_named_with_what_to_do(enrolment, tmp_path):
    """TLS's own errors name neither the certificate's owner nor who can fix it."""
    identity = Identity(enrolment.credentials("north"))
    serial = serial_number(identity.certificate)
    for text, pattern in (
        (
            "nats: 'Authorization Violation'",
            f"the broker rejects 'north' .*{serial}.*ask the coordinator",
        ),
        (
            VERIFY.format("unable to get local issuer certificate"),
            "not of the federation of 'north'.*fingerprint",
        ),
        (
            VERIFY.format("certificate has expired"),
            "the broker's own certificate .*coordinator has to renew it",
        ),
        (
            VERIFY.format("IP address mismatch"),
            r"the server there has another name .*`medfed enrol init --host`",
        ),
    ):
        assert re.search(pattern, explain_refusal(text, identity)), explain_refusal(text, identity)
    assert explain_refusal("Connection refused", identity) == ""


VERIFY = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {} (_ssl.c:1006)"


def test_another_federations_broker_is_named(enrolment, tmp_path):
    enrolment.start()
    enrolment.wait_until_listening()
    other = Enrolment(tmp_path / "other", sites=("north",))
    record = Nats(credentials=str(other.credentials("north")), urls=[enrolment.url])
    store = record._store("ab" * 32, Identity(other.credentials("north")))
    with pytest.raises(
        Unreachable, match=r"the server is not of the federation of 'north' \(.*issuer certificate\)"
    ):
        store.get("glob/abababababababab/current/m")
    store.close()


def test_a_process_that_ends_without_closing_stops_the_connections_thread_first(enrolment):
    enrolment.start()
    text = (
        "import atexit, sys, threading\n"
        "names = lambda: print([t.name for t in threading.enumerate() if t.name == 'medfed-nats'])\n"
        "atexit.register(names)\n"  # what was registered later is called first
        "from pathlib import Path\n"
        "from medfed.exchange._nats_store import NatsStore\n"
        "from medfed.wire.signing import Identity\n"
        "store = NatsStore([sys.argv[1]], Identity(Path(sys.argv[2])), 'ab' * 32)\n"
        "store.put('glob/abababababababab/r00001/m', b'x')\n"
        "names()\n"
    )
    words = [sys.executable, "-c", text, enrolment.url, str(enrolment.credentials("hub"))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["['medfed-nats']", "[]"]


@pytest.mark.slow
def test_a_request_that_the_broker_has_lost_is_repeated_with_the_same_bits(enrolment, caplog):
    """Nobody answers the first one, as when a broker's rights or streams change under it."""
    enrolment.start()
    record = Nats(credentials=str(enrolment.credentials("hub")), urls=[enrolment.url])
    store = record._store("ab" * 32, Identity(enrolment.credentials("hub")))
    name = "glob/abababababababab/r00001/m"
    retry = Retry(WarnOnce("hub"))
    retry("connects", lambda: store.put(name, b"earlier"))
    client, asked = store._client, []
    request = client.request

    async def say_nothing(message) -> None:
        pass

    async def lose_first(subject, *arguments, **named):
        asked.append(subject)
        if len(asked) == 1:
            await client.subscribe("quiet", cb=say_nothing)
        return await request("quiet" if len(asked) == 1 else subject, *arguments, **named)

    client.request = lose_first
    retry("stores", lambda: store.put(name, b"these bits"))
    assert asked == ["glob.abababababababab.r00001.m"] * 2
    assert store.get(name) == b"these bits"
    assert "the broker runs, but did not answer a request" in caplog.text
    store.close()


class Link:
    """A client's connection whose pings are answered, or not."""

    is_connected = True

    def __init__(self, answers: bool) -> None:
        self.answers, self.pings, self.stats = answers, 0, {"reconnects": 0}

    async def _send_ping(self, ping) -> None:
        self.pings += 1
        if self.answers:
            ping.set_result(True)


def test_an_answer_behind_which_three_pings_are_answered_is_lost_and_the_next_may_take_longer():
    async def ask() -> Patience:
        link, patience = Link(answers=True), Patience(0.02)
        patience.seconds = 0.004
        with pytest.raises(Unreachable, match="did not answer a request"):
            await answer_of(asyncio.get_running_loop().create_future(), link, patience)
        assert link.pings == 3
        return patience

    assert asyncio.run(ask()).seconds == 0.008


def test_an_answer_is_waited_for_while_a_ping_is_not_answered_either():
    """A link of 1 Mbit/s carries an update for a minute, and pings queue behind it."""

    async def ask() -> tuple[str, int]:
        link, request = Link(answers=False), asyncio.get_running_loop().create_future()
        patience = Patience(0.002)
        asyncio.get_running_loop().call_later(0.1, request.set_result, "late")
        return await answer_of(request, link, patience), link.pings

    assert asyncio.run(ask()) == ("late", 1)


def test_a_broker_that_answers_nothing_is_a_line_once(caplog, monkeypatch):
    monkeypatch.setattr(_nats_connecting, "TELL_SILENT_S", 0.01)

    async def ask() -> None:
        request = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.1, request.set_result, "late")
        await answer_of(request, Link(answers=False), Patience(0.002, "hub"))

    asyncio.run(ask())
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("hub: the broker answers nothing at the moment, not even that it lives")


def test_a_request_from_before_the_connection_was_made_anew_is_lost():
    async def ask() -> None:
        link = Link(answers=False)
        asyncio.get_running_loop().call_later(0.1, link.stats.update, {"reconnects": 1})
        await answer_of(asyncio.get_running_loop().create_future(), link, Patience(0.002))

    with pytest.raises(Unreachable, match="did not answer a request"):
        asyncio.run(ask())


def test_a_stream_that_is_gone_when_it_is_cleared_is_created_again(enrolment):
    enrolment.start()
    enrolment.wait_until_listening()
    hub = NatsStore([enrolment.url], Identity(enrolment.credentials("hub")), "ab" * 32)
    try:
        hub.put("glob/a/current/m", b"a model")
        hub._run(hub._change_stream, "DELETE", "GLOB", {})  # as where the broker's disk is replaced
        with pytest.raises(Unreachable, match="stream not found"):
            hub.delete_study("ab" * 32)
        hub.delete_study("ab" * 32)
        assert hub.get("glob/a/current/m") is None
    finally:
        hub.close()
