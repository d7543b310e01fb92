"""The broker as the hub's child: when a hub is killed, and when the broker cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from broker_enrolment import Enrolment

from medfed.deployment.enrolment import broker, enrol
from medfed.deployment.enrolment.broker import Broker
from medfed.deployment.enrolment.configuration import admit_study
from medfed.exchange._admitted import admitted_studies
from medfed.exchange._nats_store import NatsStore
from medfed.exchange._object_store import Unreachable
from medfed.wire.credentials import broker_urls
from medfed.wire.signing import Identity

PATIENCE_S = 60


def until(what, why: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, f"waited in vain until {why}"
        time.sleep(0.05)


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


KILLED_HUB = """
import sys, time
from pathlib import Path
from medfed.deployment.enrolment.broker import Broker
print(Broker(Path(sys.argv[1])).pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_server_of_a_hub_that_is_killed_ends_and_leaves_its_store(enrolment):
    command = [sys.executable, "-c", KILLED_HUB, str(enrolment.authority)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hub:
        pid = int(hub.stdout.readline())
        until(lambda: listens(enrolment.port), "it listens")
        store = NatsStore([enrolment.url], Identity(enrolment.credentials("hub")), "56" * 32)
        eventually(lambda: store.put("glob/newest/study/m", b"kept"))
        store.close()
        hub.kill()
    until(lambda: not is_server(pid) and not listens(enrolment.port), "the server ended")
    enrolment.start()
    again = NatsStore([enrolment.url], Identity(enrolment.credentials("hub")), "56" * 32)
    assert eventually(lambda: again.get("glob/newest/study/m")) == b"kept"
    again.close()


def is_server(pid: int) -> bool:
    try:
        return b"nats.conf" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_the_server_of_a_hub_that_was_killed_is_replaced_where_it_was_left(enrolment, monkeypatch):
    monkeypatch.setattr(broker, "ending_with_parent", lambda command: command)  # as on other systems
    left = Broker(enrolment.authority)
    until(lambda: listens(enrolment.port), "it listens")
    left._stopping.set()  # a killed hub stops supervising and lets its lock go; its server keeps running
    left._lock.close()
    replacement = enrolment.start()
    left._process.wait(PATIENCE_S)
    assert replacement.pid != left._process.pid
    until(lambda: listens(enrolment.port), "the new one listens")
    assert replacement._process.poll() is None


def test_a_second_hubs_broker_leaves_the_first_ones_server_alone_and_takes_over_after_it(enrolment, caplog):
    first = Broker(enrolment.authority)
    until(lambda: listens(enrolment.port), "it listens")
    pid = first.pid
    second = enrolment.start()
    assert "is run by another hub already; this one uses it" in caplog.text
    time.sleep(1.0)
    assert (first.pid, second.pid) == (pid, 0)
    assert first._process.poll() is None
    first.stop()
    until(lambda: second.pid and listens(enrolment.port), "the second one runs it")
    assert "this one runs it now" in caplog.text


def test_another_process_with_the_old_pid_is_left_alone(enrolment):
    (enrolment.authority / "broker" / "nats-server.pid").write_text(str(os.getpid()))
    enrolment.start()
    until(lambda: listens(enrolment.port), "it listens")


def test_a_port_that_is_taken_is_logged(enrolment, caplog):
    with socket.create_server(("127.0.0.1", enrolment.port)):
        enrolment.start()
        until(lambda: "is started again" in caplog.text, "the restart was logged")
    assert "address already in use" in caplog.text
    until(lambda: listens(enrolment.port), "it listens once the port is free")


def test_a_server_that_is_started_again_does_not_outlive_its_stop(enrolment, monkeypatch):
    running = enrolment.start()
    before, starting, go_on = running.pid, threading.Event(), threading.Event()
    server = broker.server()

    def slow():
        starting.set()
        assert go_on.wait(60)
        return server

    monkeypatch.setattr(broker, "server", slow)
    os.kill(before, signal.SIGKILL)
    assert starting.wait(60)
    stopping = threading.Thread(target=running.stop)
    stopping.start()
    stopping.join(0.3)  # it must wait for the starting server
    go_on.set()
    stopping.join(60)
    until(lambda: running.pid != before, "the second server was started")
    assert running._process.poll() is not None


def test_a_hub_reaches_its_broker_on_its_own_machine(enrolment):
    """The broker's certificate names the host that hospitals use and the broker's own machine."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(
        (enrolment.authority / "broker" / "identity.pem").read_bytes()
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "127.0.0.1" in [str(one) for one in names.get_values_for_type(x509.IPAddress)]


@pytest.mark.parametrize("scheme", ["tls", "wss"])
def test_a_federation_runs_over_ipv6(tmp_path, scheme):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    enrolment = Enrolment(tmp_path, sites=("north",), host="::1")
    enrolment.start()
    stores = [
        NatsStore([url for url in broker_urls(folder) if url.startswith(scheme)], Identity(folder), "56" * 32)
        for folder in (enrolment.credentials("hub"), enrolment.credentials("north"))
    ]
    try:
        eventually(lambda: stores[0].put("glob/newest/study/m", b"here"))
        assert eventually(lambda: stores[1].get("glob/newest/study/m")) == b"here"
    finally:
        for store in stores:
            store.close()
        enrolment.end()


@pytest.mark.parametrize("who", ["north", "west"], ids=["again after a revocation", "for the first time"])
def test_a_site_that_is_enrolled_while_the_broker_runs_is_answered(enrolment, who):
    """The party is not only admitted; its requests are answered too."""
    enrolment.start()
    hub = NatsStore([enrolment.url], Identity(enrolment.credentials("hub")), "56" * 32)
    eventually(lambda: hub.put("glob/newest/study/m", b"here"))
    if who == "north":
        enrol.revoke(enrolment.authority, who)
        eventually(lambda: reloaded(enrolment, 2))
    enrolment.enrol(who)
    site = NatsStore([enrolment.url], Identity(enrolment.credentials(who)), "56" * 32)
    assert eventually(lambda: site.get("glob/newest/study/m")) == b"here"
    for store in (site, hub):
        store.close()


def reloaded(enrolment, times: int) -> None:
    log = (enrolment.authority / "broker" / "nats-server.log").read_text()
    if log.count("Reloaded server configuration") < times:
        raise Unreachable("not yet")


def eventually(call):
    end = time.monotonic() + 15
    while True:
        try:
            return call()
        except Unreachable:
            assert time.monotonic() < end, "it was never answered"
            time.sleep(0.1)


def test_hospitals_that_joined_a_study_stay_admitted_when_its_hub_is_started_again(enrolment):
    admit_study(enrolment.authority, "ab" * 32, ["north", "west"])
    admit_study(enrolment.authority, "ab" * 32, ["north"], keep=True)
    assert admitted_studies(enrolment.authority)["ab" * 8] == ["north", "west"]
    admit_study(enrolment.authority, "ab" * 32, ["north"])
    assert admitted_studies(enrolment.authority)["ab" * 8] == ["north"]


def test_a_study_that_is_admitted_while_the_configuration_is_written_is_not_missed(enrolment):
    """The list was read before, and the file is newer than the list."""
    enrolment.start()
    configured = enrolment.authority / "broker" / "nats.conf"
    before = configured.read_text()
    admit_study(enrolment.authority, "cd" * 32, ["north"])
    assert "cd" * 8 not in before
    configured.write_text(before)
    end = time.time() + 3600
    os.utime(configured, (end, end))
    until(lambda: f"glob.{'cd' * 8}" in configured.read_text(), "the new study has rights")
