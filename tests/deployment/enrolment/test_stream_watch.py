"""A server that answers nothing for a stream is started again, the second time without the stream."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from broker_enrolment import Enrolment

from medfed.deployment.enrolment import broker, stream_watch
from medfed.deployment.enrolment.broker import Broker
from medfed.deployment.enrolment.stream_watch import StreamWatch
from medfed.exchange._nats_store import NatsStore
from medfed.exchange._object_store import Unreachable
from medfed.wire.signing import Identity

PATIENCE_S = 90

# The first is stored twice, so that the file begins with a message that is no longer there.
OBJECTS = ("state", "state", "announced", "model", "current")


@pytest.fixture
def impatient(monkeypatch):
    """A stream is silent after 2 s."""
    for module in (stream_watch, broker):
        monkeypatch.setattr(module, "SILENT_S", 2.0)
    monkeypatch.setattr(stream_watch, "STEP_S", 0.5)


def until(what, why: str):
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            if result := what():
                return result
        except Unreachable:
            pass
        assert time.monotonic() < end, f"waited in vain until {why}"
        time.sleep(0.05)


def opened(enrolment: Enrolment) -> NatsStore:
    return NatsStore([enrolment.url], Identity(enrolment.credentials("hub")), "56" * 32, timeout_s=3.0)


def put(store: NatsStore, name: str, data: bytes) -> bool:
    store.put(f"glob/{'56' * 8}/{name}/m", data)
    return True


def damage(running: Broker, subject: bytes) -> None:
    """Change a byte of the only message under a subject, in the broker's files."""
    (path,) = (running._folder / "store" / "jetstream" / "HUB" / "streams" / "GLOB" / "msgs").glob("*.blk")
    data = bytearray(path.read_bytes())
    data[data.index(subject) + len(subject) + 20] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_a_server_that_looks_for_a_damaged_message_for_ever_is_ended_and_checks_it(
    enrolment, impatient, caplog
):
    # nats-server 2.15: a new message on the subject of the damaged one, which is neither the first nor the
    # last of the file, makes the server look for that one for ever, without a word in its log.
    running = enrolment.start()
    store = opened(enrolment)
    for name in OBJECTS:
        until(lambda name=name: put(store, name, b"before" * 250), f"{name} is stored")
    running.stop()
    damage(running, b"announced.m")
    running = enrolment.start()
    until(lambda: put(store, "state", b"after"), "the state is stored")
    writing = threading.Thread(target=until, args=[lambda: put(store, "announced", b"after"), "it is stored"])
    writing.start()
    writing.join(PATIENCE_S)
    assert not writing.is_alive()
    assert store.get(f"glob/{'56' * 8}/announced/m") == b"after"
    store.close()
    told = next(record.getMessage() for record in caplog.records if "answers pings" in record.getMessage())
    assert "has answered no request for 'GLOB' for 2 s: a message there may be damaged on its disk. " in told
    assert "malformed" not in (running._folder / "nats-server.log").read_text()


def test_a_server_that_is_silent_again_is_started_without_the_stream(enrolment, caplog):
    running = enrolment.start()
    store = opened(enrolment)
    until(lambda: put(store, "state", b"here"), "it is stored")
    for lost in (False, True):
        pid, running._watch._silent = running.pid, frozenset({"GLOB"})  # as the watch would say
        until(lambda pid=pid: running.pid != pid, "it was started again")
        found = until(lambda: [store.get(f"glob/{'56' * 8}/state/m")], "it answers")
        assert found == ([None] if lost else [b"here"])
    store.close()
    first, second = (one.getMessage() for one in caplog.records if "answers pings" in one.getMessage())
    assert "It is ended and started again, checks what it stored there" in first
    assert "it was silent before, so it is started again without what it had stored there" in second


def test_a_server_that_is_stopped_leaves_the_index_of_its_store(enrolment):
    running = enrolment.start()
    store = opened(enrolment)
    until(lambda: put(store, "state", b"here"), "it is stored")
    store.close()
    running.stop()
    streams = running._folder / "store" / "jetstream" / "HUB" / "streams"
    assert (streams / "GLOB" / "msgs" / "index.db").exists()


def test_a_server_that_answers_no_ping_either_is_left_alone(enrolment, impatient, caplog):
    running = enrolment.start()
    store = opened(enrolment)
    until(lambda: put(store, "state", b"here"), "it is stored")
    pid = until(lambda: running.pid, "it runs")
    until(lambda: "GLOB" in running._watch._leaders, "it is watched")
    os.kill(pid, signal.SIGSTOP)
    time.sleep(5.0)  # more than twice the time after which a stream is silent
    os.kill(pid, signal.SIGCONT)
    assert until(lambda: store.get(f"glob/{'56' * 8}/state/m"), "it answers") == b"here"
    store.close()
    assert running.pid == pid
    assert "answers pings" not in caplog.text


def test_a_busy_server_is_left_alone(enrolment, impatient, caplog):
    running = enrolment.start()
    store = opened(enrolment)
    until(lambda: put(store, "state", b"here"), "it is stored")
    pid, prefix = running.pid, f"glob/{'56' * 8}/r00001/c"
    for turn in range(4):
        store.put_many(((f"{prefix}/{turn}-{n}", [bytes(1 << 20)]) for n in range(40)), lambda name: None)
    store.close()
    assert running.pid == pid
    assert "answers pings" not in caplog.text


def test_a_stream_of_which_only_a_folder_is_there_is_answered_for(enrolment, impatient, caplog):
    running = enrolment.start()
    store = opened(enrolment)
    until(lambda: put(store, "state", b"here"), "it is stored")
    store.close()
    (running._folder / "store" / "jetstream" / "HUB" / "streams" / "UP_gone").mkdir()
    until(lambda: "UP_gone" in running._watch._leaders, "it is answered for")
    assert running._watch.take_silent() == frozenset()


@pytest.mark.slow
def test_each_broker_of_a_cluster_knows_which_one_leads_a_stream(tmp_path):
    cluster = Enrolment(tmp_path, cluster=("127.0.0.1", "127.0.0.2", "127.0.0.3"))
    cluster.start()
    urls = cluster.exchange_of("hub")["urls"]
    store = NatsStore(urls, Identity(cluster.credentials("hub")), "56" * 32, timeout_s=10.0)
    try:
        until(lambda: put(store, "state", b"here"), "it is stored")
        leaders = {
            until(lambda one=one: one._watch._leaders.get("GLOB"), "the leader is known")
            for one in cluster.brokers
        }
        assert len(leaders) == 1
        assert leaders < {f"medfed-test-broker-{number}" for number in (1, 2, 3)}
    finally:
        store.close()
        cluster.end()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux tells a thread's state")
def test_a_process_that_waits_for_no_disk_does_not():
    assert "R" in stream_watch._thread_states(os.getpid())
    assert list(stream_watch._thread_states(2**22 + 1)) == []


def test_the_watch_ends_though_its_first_cancellation_is_swallowed(tmp_path, monkeypatch):
    looks, swallowed = threading.Event(), []

    @contextlib.asynccontextmanager
    async def connected(watch):
        yield SimpleNamespace(is_connected=True)

    async def look(watch, client):
        looks.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:  # as nats-py does while it connects or closes
            swallowed.append(client)

    monkeypatch.setattr(StreamWatch, "_connected", connected)
    monkeypatch.setattr(StreamWatch, "_look", look)
    watch = StreamWatch("tls://127.0.0.1:1", SimpleNamespace(name="hub"), tmp_path, os.getpid, True)
    assert looks.wait(30)
    watch.stop()
    assert len(swallowed) == 1
    assert not watch._thread.is_alive()
    watch.stop()
