"""Three brokers store everything together: any one may die at any moment."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest
from broker_enrolment import Enrolment, free_ports
from chunked_updates import PATIENCE_S

from medfed.deployment.enrolment.broker import Broker, server
from medfed.deployment.enrolment.configuration import admit_study, read_version
from medfed.deployment.enrolment.rights import fetch_rights, store_rights
from medfed.exchange import _nats_cluster
from medfed.exchange._nats_cluster import SETTLE_S, Patience, Seen, Unreached
from medfed.exchange._nats_store import NatsStore
from medfed.exchange._object_store import Unreachable
from medfed.wire.credentials import read_federation
from medfed.wire.signing import Identity

STUDY = "12" * 32
SPACE = STUDY[:16]
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
ROUNDS = 30


def test_the_wait_for_an_answer_follows_the_link_and_not_a_dead_leader():
    patience = Patience(120)
    patience.missed(ping_s=0.1)  # the broker is quick, only nobody answers
    assert patience.seconds == 2
    patience.missed(ping_s=1.0)
    assert patience.seconds == 4
    patience.answered(9.0)
    assert patience.seconds == 36
    patience.answered(0.1)
    assert patience.seconds == 2
    patience.answered(99.0)
    assert patience.seconds == 120


def test_brokers_that_take_long_to_answer_are_a_line(caplog, monkeypatch):
    monkeypatch.setattr(_nats_cluster, "TELL_SLOW_S", 0.01)

    async def ask() -> list[str]:
        patience = Patience(120, "hub")
        patience.answered(20.0)
        requests = [asyncio.get_running_loop().create_future() for _ in range(2)]
        for request in requests:
            asyncio.get_running_loop().call_later(0.1, request.set_result, "late")
        return [await patience.answer_of(request) for request in requests]

    assert asyncio.run(ask()) == ["late", "late"]
    (told,) = [record.getMessage() for record in caplog.records if "not answered" in record.getMessage()]
    assert told.startswith(
        "hub: the brokers have not answered a request for 0.01 s; it waits for at most 80 s"
    )


def test_an_answer_older_than_one_before_is_not_believed_until_it_stays_so():
    now = [0.0]
    seen = Seen(lambda: now[0])
    assert not seen.is_old("a.m", 0)  # nothing is there yet
    assert not seen.is_old("a.m", 5)
    assert seen.is_old("a.m", 4)
    assert seen.is_old("a.m", 0)
    assert not seen.is_old("b.m", 1)
    now[0] = SETTLE_S
    assert not seen.is_old("a.m", 4)  # the store was lost: what is there now is the newest
    assert not seen.is_old("a.m", 4)
    seen.note("a.m", 9)  # as it stored it itself
    assert seen.is_old("a.m", 8)
    seen.forget()
    assert not seen.is_old("a.m", 0)


def replica(name: str, current: bool, active_s: float, **more: object) -> dict[str, object]:
    return {"name": name, "current": current, "active": int(active_s * 1e9), **more}


def test_a_broker_that_a_new_leader_never_heard_of_is_not_reached():
    """What nats-server 2.15 says of a broker that was down before its leader was elected: no `offline`."""
    here, never, told = replica("a", True, 0.02), replica("b", False, 0, lag=5), replica("c", False, 9)
    unreached = Unreached()
    assert unreached.names([here, never]) == ()  # a leader of this moment has heard of no one
    assert unreached.names([here, never]) == ("b",)
    assert unreached.names([here, replica("b", False, 0.4)]) == ()  # it runs and catches up
    assert unreached.names([here, never]) == ()
    assert unreached.names([{**told, "offline": True}, never]) == ("b", "c")
    assert unreached.names([replica("c", False, 11)]) == ()
    assert unreached.names([replica("c", False, 12)]) == ("c",)
    assert unreached.names([]) == ()


# -- with real brokers


@pytest.fixture
def cluster(tmp_path):
    started = Enrolment(tmp_path, cluster=HOSTS)
    yield started
    started.end()


def opened(cluster: Enrolment, party: str, hosts: tuple[str, ...] = HOSTS) -> NatsStore:
    urls = [f"tls://{host}:{cluster.port}" for host in hosts]
    return NatsStore(urls, Identity(cluster.credentials(party)), STUDY)


@pytest.fixture
def hub(cluster):
    store = opened(cluster, "hub")
    yield store
    store.close()


def eventually(call):
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except Unreachable:
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


@pytest.mark.slow
def test_two_of_three_that_are_down_are_told_and_waited_for(cluster, hub):
    cluster.start()
    eventually(lambda: hub.put(f"glob/{SPACE}/study/m", b"here"))
    assert hub._run(hub._existing, "GLOB")["num_replicas"] == 3
    assert hub.offline_brokers() == ()
    cluster.brokers[0].stop()
    eventually(lambda: hub.put(f"glob/{SPACE}/study/m", b"with two"))
    cluster.brokers[1].stop()
    said = set()
    for _ in range(4):
        with pytest.raises(Unreachable) as raised:
            hub.put(f"glob/{SPACE}/study/m", b"with one")
        said.add(str(raised.value))
    assert any("fewer than two of the three run and reach each other" in text for text in said), said
    cluster.brokers[0] = Broker(cluster.authority, own="broker-1")
    eventually(lambda: hub.put(f"glob/{SPACE}/study/m", b"with two"))
    names = ("medfed-test-broker-2",)
    end = time.monotonic() + PATIENCE_S
    while hub.offline_brokers() != names:
        assert time.monotonic() < end, hub.offline_brokers()
        time.sleep(0.2)


@pytest.mark.slow
def test_a_broker_that_hangs_is_left_for_another(cluster, hub):
    cluster.start()
    eventually(lambda: hub.put(f"glob/{SPACE}/study/m", b"here"))
    own = hub._client._current_server.uri.hostname
    stopped = cluster.brokers[HOSTS.index(own)].pid
    os.kill(stopped, signal.SIGSTOP)
    try:
        eventually(lambda: hub.put(f"glob/{SPACE}/study/m", b"elsewhere"))
        # On a busy machine the client may be trying the stopped one again just now.
        end = time.monotonic() + PATIENCE_S
        while not hub._client.is_connected or hub._client._current_server.uri.hostname == own:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert eventually(lambda: hub.get(f"glob/{SPACE}/study/m")) == b"elsewhere"
    finally:
        os.kill(stopped, signal.SIGCONT)


@pytest.mark.slow
def test_brokers_on_machines_of_their_own_learn_who_may_do_what(cluster, hub, tmp_path):
    """Copies of the folders are started; then a site is enrolled and a study admitted in the enrolment."""
    machines = tmp_path / "machines"
    for place in read_federation(cluster.authority).brokers:
        shutil.copytree(cluster.authority / place.folder, machines / place.folder)
        cluster.brokers.append(Broker(machines, own=place.folder))
    eventually(lambda: hub.put(f"glob/{SPACE}/study/m", b"here"))
    identity, log = Identity(cluster.credentials("hub")), []
    eventually(lambda: store_rights(hub, identity, cluster.authority, log.append))
    cluster.enrol("west")
    admit_study(cluster.authority, STUDY, ["west", "north"])
    assert store_rights(hub, identity, cluster.authority, log.append)
    assert not store_rights(hub, identity, cluster.authority, log.append)
    for place in read_federation(cluster.authority).brokers:
        own = machines / place.folder
        store = NatsStore([place.own_url], Identity(own), "-")
        assert read_version(own) < read_version(cluster.authority)
        assert eventually(lambda store=store, own=own: fetch_rights(store, Identity(own), own))
        assert read_version(own) == read_version(cluster.authority)
        assert not fetch_rights(store, Identity(own), own)
        assert (own / "nats.conf").read_text() == (cluster.authority / place.folder / "nats.conf").read_text()
        store.close()
        site = opened(cluster, "west", (place.hosts[0],))
        assert eventually(lambda site=site: site.get(f"glob/{SPACE}/study/m")) == b"here"
        site.close()
    south = opened(cluster, "south")
    with pytest.raises(Unreachable):
        south.get(f"glob/{SPACE}/study/m")
    south.close()
    # A back-up of the enrolment from before: its rights do not replace the newer ones.
    shutil.copy(machines / "broker-1" / "rights.json", tmp_path / "newer.json")
    rights = cluster.authority / "rights.json"
    rights.write_text(re.sub(r'"version":\d+', '"version":7', rights.read_text()))
    assert not store_rights(hub, identity, cluster.authority, log.append)
    assert "newer rights" in log[-1]
    assert "than this enrolment folder (7): was it restored from a back-up?" in log[-1]


def joins(cluster: Enrolment, folder, identity) -> bool:
    """Start a fourth server that asks for routes with this identity; return whether it is let in."""
    config = (cluster.authority / "broker-1" / "nats.conf").read_text()
    port, websocket, own = free_ports(3)
    config = config.replace("medfed-test-broker-1", "fourth").replace(f":{cluster.port}", f":{port}")
    config = config.replace(f":{cluster.websocket_port}", f":{websocket}")
    config = re.sub(r'(?<=cluster \{\n  name: "medfed-test"\n  listen: ")[^"]+', f"127.0.0.4:{own}", config)
    folder.mkdir()
    (folder / "nats.conf").write_text(config)
    for name in ("identity.pem", "identity.key", "authority.pem"):
        shutil.copy(identity / name, folder / name)
    broker, fourth = cluster.authority / "broker-2" / "nats-server.log", folder / "log"
    before = len(broker.read_text())
    with fourth.open("wb") as log:
        process = subprocess.Popen([str(server()), "-c", "nats.conf"], cwd=folder, stderr=log)
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            # It learns of the leader from the others alone.
            if "cluster new metadata leader: medfed-test-broker" in fourth.read_text():
                return True
            if "authentication error" in broker.read_text()[before:]:
                return False
            assert time.monotonic() < end, fourth.read_text()
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_sites_certificate_opens_no_route_into_the_cluster(cluster, hub, tmp_path):
    """TLS accepts every certificate of the federation; a broker's alone holds the name that a route needs."""
    cluster.start()
    eventually(lambda: hub.put(f"glob/{SPACE}/study/m", b"here"))
    assert not joins(cluster, tmp_path / "rogue", cluster.credentials("north"))
    assert not joins(cluster, tmp_path / "hub-s", cluster.credentials("hub"))
    assert joins(cluster, tmp_path / "true", cluster.authority / "broker-1")


@pytest.mark.slow
def test_thirty_kills_of_a_clusters_brokers_cost_no_round_and_no_bit(federation, cluster, undisturbed):
    """In each round one of the three is killed at a random moment; its supervisor starts it again."""
    cluster.start()
    chance = random.Random(17)
    study = federation(cluster.exchange_of, settings={"pause_s": 0.1, "rounds": ROUNDS})
    study.start("hub", "north", "south")
    for kills in range(30):
        study.until(lambda kills=kills: len(study.rounds()) >= kills, f"round {kills} is over")
        time.sleep(chance.uniform(0, 0.8))
        os.kill(chance.choice(cluster.brokers).pid, signal.SIGKILL)
    assert study.digest() == undisturbed(rounds=ROUNDS)
    # The last one scores the final model.
    assert [row["round"] for row in study.rounds()] == list(range(1, ROUNDS + 2))
    assert {answer[0] for row in study.rounds()[:-1] for answer in row["answers"].values()} == {"merged"}
