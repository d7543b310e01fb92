"""The addresses of a federation's broker, read from the coordinator's folder or a hospital's kit."""

from __future__ import annotations

import msgspec
import pytest

from medfed.errors import ExchangeError
from medfed.wire.credentials import KIT_FORMAT, Federation, StartupKit, broker_urls, read_federation


@pytest.mark.parametrize(
    "listen, own", [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("10.0.0.5", "10.0.0.5")]
)
def test_the_brokers_own_machine_reaches_it_where_it_listens(listen, own):
    assert Federation("test", ["hub.org"], listen=listen).brokers[0].own_host == own


def test_names_are_listed_once_and_urls_name_hospitals_hosts_only():
    federation = Federation("test", ["hub.org", "127.0.0.1"], port=4300, websocket_port=8443)
    (broker,) = federation.brokers
    assert (broker.folder, broker.names, broker.others) == ("broker", ["hub.org", "127.0.0.1"], [])
    assert Federation("test", ["hub.org"]).brokers[0].names == ["hub.org", "127.0.0.1"]
    assert federation.urls == [
        "tls://hub.org:4300",
        "tls://127.0.0.1:4300",
        "wss://hub.org:8443",
        "wss://127.0.0.1:8443",
    ]
    assert Federation("test", ["hub.org"]).urls == ["tls://hub.org:4222", "wss://hub.org:443"]


def test_an_ipv6_address_is_in_brackets_where_a_port_follows():
    federation = Federation("test", ["2001:db8::7"], port=4300, websocket_port=8443, listen="::1")
    assert federation.urls == ["tls://[2001:db8::7]:4300", "wss://[2001:db8::7]:8443"]
    (broker,) = federation.brokers
    assert broker.own_url == "tls://[::1]:4300"
    assert broker.listens == {"nats": "[::1]:4300", "websocket": "[::1]:8443"}
    assert broker.names == ["2001:db8::7", "::1"]


def test_each_broker_of_a_cluster_has_a_folder_its_hosts_names_and_the_addresses_of_the_others():
    federation = Federation("test", ["a.org", "2001:db8::7", "c.org"], cluster=True)
    assert federation.urls[:3] == ["tls://a.org:4222", "tls://[2001:db8::7]:4222", "tls://c.org:4222"]
    one, two, three = federation.brokers
    assert [one.folder, two.folder, three.folder] == ["broker-1", "broker-2", "broker-3"]
    assert two.names == ["2001:db8::7", "127.0.0.1"]
    assert two.others == ["a.org:6222", "c.org:6222"]
    assert two.listens == {"nats": "0.0.0.0:4222", "websocket": "0.0.0.0:443", "cluster": "0.0.0.0:6222"}
    own = Federation("test", ["a.org", "2001:db8::7"], listen="host", cluster=True).brokers[1]
    assert own.listens["cluster"] == "[2001:db8::7]:6222"
    assert own.names == ["2001:db8::7"]


def test_a_hospital_takes_the_urls_of_its_kit_and_the_hub_those_of_the_federation(tmp_path):
    site, hub = tmp_path / "site", tmp_path / "hub"
    site.mkdir()
    hub.mkdir()
    kit = StartupKit(KIT_FORMAT, "test", "north", ["tls://kit:1"], "certificate", "authority")
    (site / "kit.json").write_bytes(msgspec.json.encode(kit))
    federation = Federation("test", ["hub.org"])
    (tmp_path / "federation.json").write_bytes(msgspec.json.encode(federation))
    assert read_federation(tmp_path) == federation
    assert broker_urls(site) == ["tls://kit:1"]
    assert broker_urls(hub) == ["tls://hub.org:4222", "wss://hub.org:443"]


@pytest.mark.parametrize(
    "text, reason",
    [
        (None, "FileNotFoundError"),
        ("{", "DecodeError"),
        ('{"name": "t", "hosts": [], "x": 1}', "ValidationError"),
    ],
)
def test_a_folder_without_a_federation_is_refused(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "federation.json").write_text(text)
    with pytest.raises(ExchangeError, match=rf"holds no federation \({reason}\); `medfed enrol init`"):
        read_federation(tmp_path)
