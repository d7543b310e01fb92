"""How the hub's word on who may do what comes to a cluster's brokers; with real ones, see test_cluster.py."""

from __future__ import annotations

import shutil

import msgspec
import pytest

from medfed.deployment.enrolment import enrol
from medfed.deployment.enrolment.configuration import read_rights, read_version
from medfed.deployment.enrolment.rights import NAME, fetch_rights, open_rights, store_rights
from medfed.errors import WireError
from medfed.wire.signing import Identity


class Stored(dict):
    """A store that holds what is put."""

    put = dict.__setitem__


@pytest.fixture
def cluster(tmp_path):
    enrol.init(tmp_path / "federation", "lungs", ["a.org", "192.0.2.7", "c.org"], cluster_port=6222)
    shutil.copytree(tmp_path / "federation" / "broker-1", tmp_path / "broker-1")
    return tmp_path / "federation"


def enrolled(folder, credentials, site="north"):
    request, _ = enrol.request(credentials, site)
    enrol.sign(folder, request, credentials / "kit")
    return enrol.accept(credentials, credentials / "kit")


def test_rights_go_from_the_hub_to_a_copy_of_a_brokers_folder_once(cluster, tmp_path):
    enrolled(cluster, tmp_path / "site")
    store, log, copy = Stored(), [], tmp_path / "broker-1"
    hub, broker = Identity(cluster / "hub"), Identity(copy)
    assert not fetch_rights(store, broker, copy)
    assert store_rights(store, hub, cluster, log.append)
    assert not store_rights(store, hub, cluster, log.append)
    assert fetch_rights(store, broker, copy)
    assert not fetch_rights(store, broker, copy)
    assert read_rights(copy) == read_rights(cluster)
    assert '"SITE_north"' in (copy / "nats.conf").read_text()
    enrol.revoke(cluster, "north")
    assert store_rights(store, hub, cluster, log.append)
    older = store[NAME]
    assert fetch_rights(store, broker, copy)
    assert '"SITE_north"' not in (copy / "nats.conf").read_text()
    enrol.refresh(cluster)
    store_rights(store, hub, cluster, log.append)
    fetch_rights(store, broker, copy)
    store[NAME] = older
    assert not fetch_rights(store, broker, copy)
    assert read_version(copy) == read_version(cluster)
    assert log == []


def test_a_restored_enrolment_is_told_and_refreshed(cluster, tmp_path):
    store, log, hub = Stored(), [], Identity(cluster / "hub")
    back_up = (cluster / "rights.json").read_bytes()
    enrol.refresh(cluster)
    store_rights(store, hub, cluster, log.append)
    newer = store[NAME]
    (cluster / "rights.json").write_bytes(back_up)
    assert not store_rights(store, hub, cluster, log.append)
    assert store[NAME] == newer
    assert "was it restored from a back-up?" in log[0]
    # Refreshed often enough within one second, or once in any later one.
    while read_version(cluster) <= open_rights(newer, hub).version:
        enrol.refresh(cluster)
    assert store_rights(store, hub, cluster, log.append)


def test_only_what_the_hub_signed_is_taken_as_rights(cluster, tmp_path):
    enrolled(cluster, tmp_path / "site")
    text = msgspec.json.encode(read_rights(cluster))
    broker = Identity(cluster / "broker-1")
    assert open_rights(Identity(cluster / "hub").seal(text), broker) == read_rights(cluster)
    for other in (tmp_path / "site", cluster / "broker-2"):
        with pytest.raises(WireError, match=r"it is signed by '(north|broker)', expected 'hub'"):
            open_rights(Identity(other).seal(text), broker)
    with pytest.raises(WireError, match="expected who may do what at the brokers"):
        open_rights(Identity(cluster / "hub").seal(b"{}"), broker)
