"""What the broker's server refuses reaches the coordinator's audit log, however often somebody knocks."""

from __future__ import annotations

import socket
import ssl
import time

import pytest
from broker_enrolment import Enrolment

from medfed.deployment.enrolment.broker import Broker
from medfed.deployment.enrolment.configuration import configuration
from medfed.deployment.enrolment.refusals import MAX_READ_BYTES, RefusalLog
from medfed.exchange._nats_store import NatsStore
from medfed.exchange._object_store import Refused
from medfed.wire.signing import Identity

PATIENCE_S = 60

HANDSHAKE = (
    "[9] 2026/11/30 04:00:00.1 [ERR] 10.0.0.9:4711 - cid:7 - TLS handshake error: read tcp: i/o timeout"
)
CERTIFICATE = '[9] 2026/11/30 04:00:01.1 [ERR] 10.0.0.9:4712 - cid:8 - authentication error - User "CN=south"'
SUBJECT = '[9] 2026/11/30 04:00:02.1 [ERR] 10.0.0.9:4713 - cid:9 - Publish Violation - Account "SITE_north"'


@pytest.fixture
def watched(tmp_path):
    """A log, what is reported of it, and a clock that the test sets."""
    path, told, now = tmp_path / "server.log", [], [0.0]
    path.write_text(f"{HANDSHAKE}\n")  # of an earlier hub: reported by that one
    return path, told, now, RefusalLog(path, told.append, lambda: now[0])


def append(path, *lines: str) -> None:
    with path.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))


def test_each_kind_is_reported_at_once_with_its_first_line(watched):
    path, told, _, refusals = watched
    refusals.poll()
    assert told == []
    append(path, "[9] [INF] Server is ready", HANDSHAKE, CERTIFICATE, SUBJECT, HANDSHAKE)
    refusals.poll()
    assert told == [
        f"the broker refused a connection without a valid TLS handshake, 2 times; first: {HANDSHAKE}",
        "the broker refused a party without a valid certificate of an enrolled site, 1 times; first: "
        + CERTIFICATE,
        f"the broker refused a subject that is not the site's own, 1 times; first: {SUBJECT}",
    ]


def test_a_flood_is_one_line_per_minute_that_counts_it(watched):
    path, told, now, refusals = watched
    append(path, HANDSHAKE)
    refusals.poll()
    for second in range(1, 60):
        now[0] = float(second)
        append(path, *[HANDSHAKE] * 10)
        refusals.poll()
    assert len(told) == 1
    now[0] = 60.0
    refusals.poll()
    assert len(told) == 2
    assert ", 590 times; first: " in told[1]


def test_a_torn_line_waits_for_its_rest_and_a_replaced_log_is_read_on(watched):
    path, told, _, refusals = watched
    with path.open("a") as file:
        file.write(HANDSHAKE[:70])
    refusals.poll()
    assert told == []
    append(path, HANDSHAKE[70:])
    refusals.poll()
    assert len(told) == 1
    path.write_text("")
    refusals.poll()
    append(path, SUBJECT)
    refusals.poll()
    assert told[1:] == [f"the broker refused a subject that is not the site's own, 1 times; first: {SUBJECT}"]
    path.unlink()
    refusals.poll()


def test_of_a_flood_only_the_end_is_read(watched):
    path, told, _, refusals = watched
    append(path, HANDSHAKE, "x" * MAX_READ_BYTES, SUBJECT)
    refusals.poll()
    assert [text.partition(",")[0] for text in told] == [
        "the broker refused a subject that is not the site's own"
    ]


def until(what, why: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, f"waited in vain until {why}"
        time.sleep(0.05)


def connects(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_a_party_of_another_federation_is_in_the_audit_log_of_both(enrolment, tmp_path):
    told: list[str] = []
    enrolment.brokers.append(Broker(enrolment.authority, on_refused=told.append))
    until(lambda: connects(enrolment.port), "it listens")
    (tmp_path / "other").mkdir()
    stranger = Enrolment(tmp_path / "other", sites=("north",), port=enrolment.port, websocket_port=1)
    # It has the right authority's certificate, and its own one of another.
    own = stranger.credentials("north")
    (own / "authority.pem").write_bytes((enrolment.credentials("north") / "authority.pem").read_bytes())
    store = NatsStore([enrolment.url], Identity(own), "12" * 32, timeout_s=5)
    try:
        with pytest.raises(Refused, match="the broker rejects 'north'"):
            store.get("glob/1212121212121212/current/m")
    finally:
        store.close()
    until(lambda: told, "the broker's refusal was reported")
    assert told[0].startswith("the broker refused a connection without a valid TLS handshake, ")


def test_a_handshake_has_five_seconds(enrolment):
    assert configuration(enrolment.authority).count("verify_and_map: true, timeout: 5 }") == 2


@pytest.mark.slow
def test_a_connection_that_does_not_shake_hands_is_closed_and_told_and_does_not_hold_up_others(enrolment):
    """Both who says nothing and who sends half a ClientHello; a hospital connects meanwhile."""
    told: list[str] = []
    enrolment.brokers.append(Broker(enrolment.authority, on_refused=told.append))
    until(lambda: connects(enrolment.port), "it listens")
    idle = [socket.create_connection(("127.0.0.1", enrolment.port)) for _ in range(40)]
    for one in idle[:20]:
        one.sendall(b"\x16\x03\x01")
    hub = Identity(enrolment.credentials("hub"))
    store = NatsStore([enrolment.url], hub, "12" * 32, timeout_s=30)
    store.put("glob/1212121212121212/current/m", b"a model")
    assert store.get("glob/1212121212121212/current/m") == b"a model"
    store.close()
    for one in idle:
        one.settimeout(PATIENCE_S)
        with one:
            while closed_by_server(one) is False:
                pass
    until(lambda: told, "the refusal was reported")
    assert "without a valid TLS handshake" in told[0]


def closed_by_server(connection: socket.socket) -> bool:
    """Wait for the next bytes (the greeting that precedes TLS); return whether it closed instead."""
    try:
        return connection.recv(4096) == b""
    except (ConnectionResetError, ssl.SSLError):
        return True


@pytest.mark.parametrize(
    "line",
    [
        "[ERR] JetStream failed to store a msg on stream 'HUB > GLOB': malformed or corrupt message in 2.blk",
        "[ERR] JetStream stream 'HUB > GLOB' critical write error: malformed or corrupt message in 2.blk: x",
        "[WRN] Filestore [GLOB] Ignoring non-write error: malformed or corrupt message in 2.blk: x",
    ],
)
def test_a_stream_with_a_damaged_message_is_found(watched, line):
    path, told, _, refusals = watched
    append(path, f"[9] 2026/11/30 17:57:02.180298 {line}")
    refusals.poll()
    assert refusals.damaged == {"GLOB"}
    assert told == []


@pytest.mark.parametrize(
    "line",
    [
        # What a party could bring about, for instance by its name or a subject.
        "10.0.0.9:4713 - cid:9 - Publish Violation - Subject \"JetStream stream 'HUB > GLOB' malformed or "
        'corrupt message"',
        "JetStream stream 'HUB > ../../hub' critical write error: malformed or corrupt message in 2.blk: x",
        "JetStream stream 'HUB > GLOB' critical write error: no space left on device",
    ],
)
def test_other_lines_name_no_damaged_stream(watched, line):
    path, _, _, refusals = watched
    append(path, f"[9] 2026/11/30 17:57:02.180298 [ERR] {line}")
    refusals.poll()
    assert refusals.damaged == set()
