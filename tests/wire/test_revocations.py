"""Roles in certificates, and the list of revoked ones that goes from the authority to every hospital."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from broker_enrolment import Enrolment
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from medfed.deployment.enrolment import enrol
from medfed.deployment.enrolment.configuration import configuration
from medfed.deployment.enrolment.participants import participants
from medfed.errors import ExchangeError, WireError
from medfed.wire import revocations
from medfed.wire.signing import Identity, role, role_of


@pytest.fixture
def enrolment(tmp_path) -> Enrolment:
    return Enrolment(tmp_path, ("north", "south"), port=1, websocket_port=2)


def identity(enrolment: Enrolment, party: str) -> Identity:
    return Identity(enrolment.credentials(party)).check()


def certificate(enrolment: Enrolment, party: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((enrolment.authority / party / "identity.pem").read_bytes())


def authority_key(enrolment: Enrolment) -> Ed25519PrivateKey:
    return load_pem_private_key((enrolment.authority / "authority.key").read_bytes(), None)


def issued_without_a_role(enrolment: Enrolment, monkeypatch, work) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(enrol, "role_of", lambda party: "")
        patch.setattr(enrol, "SITE", "")
        work()


# ------------------------------------------------------------------------------------------------------ roles


def test_every_certificate_states_its_holders_role(enrolment):
    assert [role(certificate(enrolment, party)) for party in ("hub", "broker")] == ["hub", "broker"]
    assert role(identity(enrolment, "north").certificate) == "site"
    assert [role_of(party) for party in ("hub", "broker", "Hub", "north")] == [
        "hub",
        "broker",
        "site",
        "site",
    ]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_role_and_list(enrolment):
    north = enrolment.credentials("north") / "identity.pem"
    subject = subprocess.run(
        ["openssl", "x509", "-in", north, "-noout", "-subject", "-nameopt", "RFC2253"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "OU=site" in subject
    (revoked,) = enrol.revoke(enrolment.authority, "south")
    shown = subprocess.run(
        [
            "openssl",
            "crl",
            "-in",
            enrolment.authority / "hub" / "revoked.crl",
            "-noout",
            "-text",
            "-CAfile",
            enrolment.authority / "authority.pem",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "verify OK" in shown.stderr
    assert revoked.serial.upper() in shown.stdout


@pytest.mark.parametrize("role_shown", ["broker", "hub", ""])
def test_a_text_under_another_role_is_refused(enrolment, monkeypatch, role_shown):
    """Even if the authority once gave a certificate of that name."""
    with monkeypatch.context() as patch:
        patch.setattr(enrol, "role_of", lambda party: role_shown)
        patch.setattr(enrol, "SITE", role_shown)
        enrolment.enrol("west")
    sealed = Identity(enrolment.credentials("west")).seal(b"text")
    with pytest.raises(
        WireError, match=f"the certificate of 'west' states the role '{role_shown}', expected"
    ):
        identity(enrolment, "north").open(sealed, "west")
    with pytest.raises(ExchangeError, match=f"west's certificate states the role '{role_shown}', expected"):
        identity(enrolment, "west")


def test_a_site_is_not_the_hub(enrolment):
    sealed = identity(enrolment, "south").seal(b"text")
    with pytest.raises(WireError, match="it is signed by 'south', expected 'hub'"):
        identity(enrolment, "north").open(sealed, "hub")


def test_a_kit_without_a_role_is_not_accepted(enrolment, monkeypatch):
    request, _ = enrol.request(enrolment.credentials("west"), "west")
    kit = enrolment.folder / "west.kit"
    issued_without_a_role(enrolment, monkeypatch, lambda: enrol.sign(enrolment.authority, request, kit))
    with pytest.raises(ExchangeError, match="the kit's certificate states the role '', expected 'site'"):
        enrol.accept(enrolment.credentials("west"), kit)
    assert {one.site: one.status for one in participants(enrolment.authority)}["west"] == "no role"
    # A certificate is a client of the broker only under the role of a hospital.
    assert "SITE_north" in configuration(enrolment.authority)
    assert "SITE_west" not in configuration(enrolment.authority)


def test_hub_and_broker_of_an_older_enrolment_are_renewed_under_their_keys(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(enrol, "role_of", lambda party: "")
        enrol.init(tmp_path / "enrolment", "old", ["127.0.0.1"])
    old = Enrolment.__new__(Enrolment)
    old.folder = tmp_path
    keys = {party: certificate(old, party).public_key() for party in ("hub", "broker")}
    with pytest.raises(ExchangeError, match="hub's certificate states the role '', expected 'hub'"):
        identity(old, "hub")
    enrol.refresh(old.authority)
    assert {party: certificate(old, party).public_key() for party in keys} == keys
    assert role(certificate(old, "broker")) == "broker"
    assert identity(old, "hub").name == "hub"


# --------------------------------------------------------------------------------------- revoked certificates


def test_a_site_refuses_a_revoked_party_once_it_has_the_list(enrolment):
    north, hub = identity(enrolment, "north"), identity(enrolment, "hub")
    sealed = identity(enrolment, "south").seal(b"text")
    assert north.open(sealed, "south") == b"text"
    enrol.revoke(enrolment.authority, "south")
    assert north.open(sealed, "south") == b"text"  # it can not know yet
    north.accept_revocations(hub.revocations())
    with pytest.raises(WireError, match="the certificate of 'south' was revoked"):
        north.open(sealed, "south")
    # It is kept: another process, and another study, know it too.
    with pytest.raises(WireError, match="the certificate of 'south' was revoked"):
        identity(enrolment, "north").open(sealed, "south")
    enrolment.enrol("south")
    assert north.open(identity(enrolment, "south").seal(b"text"), "south") == b"text"


def test_an_older_list_is_refused(enrolment):
    north, hub = identity(enrolment, "north"), identity(enrolment, "hub")
    before = hub.revocations()
    enrol.revoke(enrolment.authority, "south")
    north.accept_revocations(hub.revocations())
    north.accept_revocations(hub.revocations())  # the same one again is fine
    for site in (north, identity(enrolment, "north")):
        with pytest.raises(WireError, match="an older one is not accepted"):
            site.accept_revocations(before)


def test_a_list_that_expired_is_refused_and_the_hub_says_so_first(enrolment, monkeypatch):
    north = identity(enrolment, "north")
    monkeypatch.setattr(revocations, "VALID_DAYS", 0)
    enrol.refresh(enrolment.authority)
    expired = (enrolment.authority / "hub" / "revoked.crl").read_text()
    with pytest.raises(WireError, match=r"was valid until .*`medfed enrol refresh`"):
        north.accept_revocations(expired)
    with pytest.raises(ExchangeError, match=r"credentials: revoked[.]crl: its list"):
        identity(enrolment, "hub").revocations()


def test_a_list_of_the_hubs_own_making_is_refused(enrolment):
    """The hub signs with its key, which is not the authority's; or leaves the list away."""
    north, hub = identity(enrolment, "north"), identity(enrolment, "hub")
    forged = revocations.write_revocations(hub._key, hub.authority, [])
    first, *lines = hub.revocations().splitlines(keepends=True)
    changed = "".join([first, lines[0].swapcase(), *lines[1:]])
    for text in (forged.decode(), changed, "nothing", hub.revocations()[:200]):
        with pytest.raises(WireError, match="is not one that this federation's authority signed"):
            north.accept_revocations(text)
    with pytest.raises(WireError, match="no list of revoked certificates came with it"):
        north.accept_revocations("")


def test_a_list_has_a_larger_number_each_time_and_keeps_its_dates(enrolment):
    key, authority = authority_key(enrolment), identity(enrolment, "hub").authority
    first = revocations.write_revocations(key, authority, ["a1"])
    second = revocations.write_revocations(key, authority, ["a1", "b2"], first)
    one, two = (revocations.read_revocations(data, authority) for data in (first, second))
    assert two.number > one.number
    assert (one.serials, two.serials) == ({"a1"}, {"a1", "b2"})
    dates = [{entry.serial_number: entry.revocation_date_utc for entry in x509.load_pem_x509_crl(data)}
             for data in (first, second)]  # fmt: skip
    assert dates[1][0xA1] == dates[0][0xA1]
    assert two.expires - two.issued == timedelta(days=revocations.VALID_DAYS)
    assert two.issued <= datetime.now(UTC)


def test_a_folder_that_cannot_be_written_is_said_and_the_list_counts_all_the_same(
    enrolment, monkeypatch, caplog
):
    north, hub = identity(enrolment, "north"), identity(enrolment, "hub")
    sealed = identity(enrolment, "south").seal(b"text")
    enrol.revoke(enrolment.authority, "south")

    def full(path: Path, data: bytes) -> None:
        raise OSError("read-only")

    monkeypatch.setattr("medfed.wire.signing.write_whole", full)
    north.accept_revocations(hub.revocations())
    assert "after a restart an older one would be accepted" in caplog.text
    with pytest.raises(WireError, match="the certificate of 'south' was revoked"):
        north.open(sealed, "south")


def test_without_the_authoritys_key_hub_and_broker_refuse_and_the_message_says_who_does_not_yet(enrolment):
    (enrolment.authority / "authority.key").unlink()
    with pytest.raises(ExchangeError, match=r"the hospitals do not yet: this folder has no authority[.]key"):
        enrol.revoke(enrolment.authority, "south")
    sealed = identity(enrolment, "south").seal(b"text")
    with pytest.raises(WireError, match="was revoked"):
        identity(enrolment, "hub").open(sealed, "south")
