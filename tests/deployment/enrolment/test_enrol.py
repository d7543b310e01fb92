from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from cryptography import x509

from medfed.deployment.enrolment import enrol
from medfed.deployment.enrolment.participants import participants
from medfed.errors import ExchangeError
from medfed.wire.credentials import broker_urls
from medfed.wire.signing import Identity


@pytest.fixture
def federation(tmp_path):
    enrol.init(tmp_path / "federation", "lungs", ["hub.example.org", "192.0.2.7"])
    return tmp_path / "federation"


def joined(federation, folder, site="north", days=enrol.PARTY_DAYS):
    request, _ = enrol.request(folder, site)
    enrol.sign(federation, request, folder / "kit", days)
    return enrol.accept(folder, folder / "kit")


def test_a_hospital_joins_with_one_file(federation, tmp_path):
    request, seen_there = enrol.request(tmp_path / "site", "north")
    assert enrol.request_fingerprint(request) == ("north", seen_there)
    signed = enrol.sign(federation, request, tmp_path / "north.kit")
    accepted = enrol.accept(tmp_path / "site", tmp_path / "north.kit")
    assert accepted == signed
    assert Identity(tmp_path / "site").check().name == "north"
    assert broker_urls(tmp_path / "site") == [
        "tls://hub.example.org:4222",
        "tls://192.0.2.7:4222",
        "wss://hub.example.org:443",
        "wss://192.0.2.7:443",
    ]
    assert not (tmp_path / "site" / "requested.key").exists()


def test_private_keys_are_their_owners_alone(federation, tmp_path):
    joined(federation, tmp_path / "site")
    keys = [*tmp_path.rglob("*.key")]
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
    assert len(keys) == 4  # authority, hub, broker, site
    # Nothing that travels holds a private key.
    for travels in (tmp_path / "site" / "north.request.pem", tmp_path / "site" / "kit"):
        assert "PRIVATE" not in travels.read_text()


def test_openssl_reads_and_verifies_what_is_made(federation, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    joined(federation, tmp_path / "site")
    for certificate, purpose in (
        (tmp_path / "site" / "identity.pem", "sslclient"),
        (federation / "hub" / "identity.pem", "sslclient"),
        (federation / "broker" / "identity.pem", "sslserver"),
    ):
        checked = subprocess.run(
            [
                "openssl",
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-CAfile",
                federation / "authority.pem",
                certificate,
            ],
            capture_output=True,
            text=True,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_kit_for_another_key_is_refused(federation, tmp_path):
    joined(federation, tmp_path / "site")
    with pytest.raises(ExchangeError, match="the kit does not belong to a key in this folder"):
        enrol.accept(tmp_path / "elsewhere", tmp_path / "site" / "kit")


def test_a_kit_of_an_authority_that_was_not_read_out_is_refused(federation, tmp_path):
    other = enrol.init(tmp_path / "other", "lungs", ["hub"])
    request, _ = enrol.request(tmp_path / "site", "north")
    enrol.sign(federation, request, tmp_path / "kit")
    with pytest.raises(ExchangeError, match="do not use it"):
        enrol.accept(tmp_path / "site", tmp_path / "kit", authority=other)


def test_a_damaged_kit_or_request_is_refused(federation, tmp_path):
    request, _ = enrol.request(tmp_path / "site", "north")
    enrol.sign(federation, request, tmp_path / "kit")
    text = (tmp_path / "kit").read_text()
    (tmp_path / "kit").write_text(text[: len(text) // 2])
    with pytest.raises(ExchangeError, match="the kit is unreadable"):
        enrol.accept(tmp_path / "site", tmp_path / "kit")
    request.write_text(request.read_text().replace("A", "B"))
    with pytest.raises(ExchangeError, match="the request"):
        enrol.sign(federation, request, tmp_path / "kit")


@pytest.mark.parametrize("name", ["hub", "Hub", "broker", "a b", "../x", "", "x" * 65])
def test_a_name_that_no_site_may_have_is_refused(tmp_path, name):
    with pytest.raises(ExchangeError, match="a site's name has 1 to 64"):
        enrol.request(tmp_path, name)


def test_a_second_authority_in_one_folder_is_refused(federation):
    with pytest.raises(ExchangeError, match="this folder already has an authority"):
        enrol.init(federation, "lungs", ["hub"])


def test_revoked_and_renewed_are_listed(federation, tmp_path):
    first = joined(federation, tmp_path / "site")
    joined(federation, tmp_path / "south", "south", days=10)
    assert [(one.site, one.status) for one in participants(federation)] == [
        ("north", "valid"),
        ("south", "expires soon"),
    ]
    assert [one.serial for one in enrol.revoke(federation, "north")] == [first.serial]
    second = joined(federation, tmp_path / "site")
    assert second.serial != first.serial
    assert second.user != first.user
    assert {one.serial: one.status for one in participants(federation) if one.site == "north"} == {
        first.serial: "revoked",
        second.serial: "valid",
    }
    configuration = (federation / "broker" / "nats.conf").read_text()
    assert second.user in configuration
    assert first.user not in configuration
    assert (federation / "hub" / "sites.txt").read_text().split() == ["north", "south"]
    with pytest.raises(
        ExchangeError, match="site 'west' has no valid certificate; sites that have one: north, south"
    ):
        enrol.revoke(federation, "west")


def test_an_expired_certificate_is_refused(federation, tmp_path):
    joined(federation, tmp_path / "site")
    request, kit = tmp_path / "site" / "north.request.pem", tmp_path / "late.kit"
    enrol.sign(federation, request, kit, days=-1 / 24)
    assert "expired" in {one.status for one in participants(federation)}
    with pytest.raises(
        ExchangeError,
        match=r"the kit's certificate expired on .* UTC, and the clock here says .*; ask the coordinator",
    ):
        enrol.accept(tmp_path / "site", kit)
    (tmp_path / "site" / "identity.pem").write_text(json.loads(kit.read_text())["certificate"])
    with pytest.raises(ExchangeError, match="north's certificate expired on"):
        Identity(tmp_path / "site").check()


def test_a_certificate_holds_where_the_clock_is_hours_behind(federation, tmp_path):
    made = x509.load_pem_x509_certificate((federation / "hub" / "identity.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((federation / "authority.pem").read_bytes())
    for certificate in (made, authority):
        age = enrol.datetime.now(enrol.UTC) - certificate.not_valid_before_utc
        assert age > enrol.timedelta(hours=23)
