"""The configuration of a cluster's brokers: certificates, addresses, and rights under a version."""

from __future__ import annotations

import shutil

import msgspec
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from medfed.deployment.enrolment import enrol
from medfed.deployment.enrolment.configuration import (
    admit_study,
    configuration,
    read_member,
    read_rights,
    take_rights,
)
from medfed.errors import EnrolmentError
from medfed.wire.credentials import StartupKit
from medfed.wire.signing import Identity

STUDY = "34" * 32


@pytest.fixture
def cluster(tmp_path):
    enrol.init(tmp_path / "federation", "lungs", ["a.org", "192.0.2.7", "c.org"], cluster_port=6222)
    return tmp_path / "federation"


def enrolled(folder, credentials, site="north"):
    request, _ = enrol.request(credentials, site)
    enrol.sign(folder, request, credentials / "kit")
    return enrol.accept(credentials, credentials / "kit")


def test_each_broker_has_a_certificate_for_its_own_host_and_one_name_that_only_brokers_have(
    cluster, tmp_path
):
    names, users = [], []
    for number in (1, 2, 3):
        certificate = Identity(cluster / f"broker-{number}").check().certificate
        names_of = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = names_of.get_values_for_type(x509.DNSName)
        names.append([*dns[1:], *map(str, names_of.get_values_for_type(x509.IPAddress))])
        users.append(dns[0])
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    own = "cluster.broker.lungs.medfed"
    assert names == [
        ["a.org", own, "127.0.0.1"],
        [own, "192.0.2.7", "127.0.0.1"],
        ["c.org", own, "127.0.0.1"],
    ]
    assert len(set(users)) == 3
    enrolled(cluster, tmp_path / "site")
    for other in (cluster / "hub", tmp_path / "site"):
        assert own.encode() not in Identity(other).certificate.public_bytes(enrol.Encoding.DER)


def test_each_configuration_names_itself_the_others_and_nothing_of_the_coordinators_machine(cluster):
    text = (cluster / "broker-2" / "nats.conf").read_text()
    assert 'server_name: "medfed-lungs-broker-2"' in text
    assert 'routes: [ "tls://a.org:6222", "tls://c.org:6222" ]' in text
    assert 'store_dir: "store"' in text
    assert str(cluster) not in text
    assert read_member(cluster / "broker-2").place.hosts == ["192.0.2.7"]
    assert (cluster / "hub" / "brokers.txt").read_text().split() == ["a.org", "192.0.2.7", "c.org"]


def test_a_hospital_gets_the_urls_of_all_three(cluster, tmp_path):
    enrolled(cluster, tmp_path / "site")
    kit = msgspec.json.decode((tmp_path / "site" / "kit.json").read_bytes(), type=StartupKit)
    assert kit.urls[:3] == ["tls://a.org:4222", "tls://192.0.2.7:4222", "tls://c.org:4222"]
    assert kit.urls[3:] == ["wss://a.org:443", "wss://192.0.2.7:443", "wss://c.org:443"]


def test_a_change_of_rights_has_a_higher_version_and_an_older_one_is_not_taken(cluster, tmp_path):
    first = read_rights(cluster)
    shutil.copytree(cluster / "broker-1", tmp_path / "broker-1")
    enrolled(cluster, tmp_path / "site")
    admit_study(cluster, STUDY, ["north"])
    second = read_rights(cluster)
    assert second.version > first.version
    assert [(one.site, one.spaces) for one in second.sites] == [("north", [STUDY[:16]])]
    admit_study(cluster, STUDY, ["north"])
    assert read_rights(cluster) == second
    assert "north" not in (tmp_path / "broker-1" / "nats.conf").read_text()
    assert take_rights(tmp_path / "broker-1", second)
    assert f'"up.{STUDY[:16]}.north.>"' in (tmp_path / "broker-1" / "nats.conf").read_text()
    assert not take_rights(tmp_path / "broker-1", first)
    assert read_rights(tmp_path / "broker-1") == second
    enrol.refresh(cluster)
    assert read_rights(cluster).version > second.version


def test_a_cluster_has_three_hosts(tmp_path):
    for hosts in (["a.org", "b.org"], ["a.org", "b.org", "a.org"], ["a", "b", "c", "d"]):
        with pytest.raises(EnrolmentError, match=r"brokers' hosts were given, expected 3 that differ"):
            enrol.init(tmp_path / "new", "lungs", hosts, cluster_port=6222)


def test_one_broker_is_no_member_and_its_configuration_has_no_cluster(tmp_path):
    enrol.init(tmp_path / "one", "lungs", ["a.org"])
    assert "cluster" not in configuration(tmp_path / "one")
    assert not (tmp_path / "one" / "hub" / "brokers.txt").exists()
    with pytest.raises(
        EnrolmentError, match=r"this is no folder of a broker .FileNotFoundError.: `medfed enrol"
    ):
        read_member(tmp_path / "one" / "broker")
