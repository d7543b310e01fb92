"""Seals: what a signature covers, and why a sealed text, a signer or an identity is refused."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from medfed.deployment.enrolment import enrol
from medfed.errors import ExchangeError, WireError
from medfed.wire import signing
from medfed.wire.signing import (
    Identity,
    SessionSeal,
    Unsigned,
    check_issued,
    check_signature,
    common_name,
    load_seal,
    serial_number,
)

TEXT = b'{"round": 3}\nmore'


def enrolled(folder, *sites: str):
    """Return the coordinator's folder, and each site's folder of credentials."""
    enrol.init(folder / "authority", "test", ["127.0.0.1"])
    for site in sites:
        request, _ = enrol.request(folder / site, site)
        enrol.sign(folder / "authority", request, folder / f"{site}.kit")
        enrol.accept(folder / site, folder / f"{site}.kit")
    return folder / "authority", {site: folder / site for site in sites}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two federations that have a site north each; the first has south, too."""
    folder = tmp_path_factory.mktemp("signing")
    authority, sites = enrolled(folder / "one", "north", "south")
    _, others = enrolled(folder / "two", "north")
    return {"authority": authority, **sites, "stranger": others["north"], "hub": authority / "hub"}


@pytest.fixture
def north(folders):
    return Identity(folders["north"])


def copied(source, target, *, without: str = ""):
    target.mkdir()
    for path in source.iterdir():
        if path.is_file() and path.name != without:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_sealed_text_is_the_text_after_a_line_with_certificate_and_signature(north, folders):
    sealed = north.seal(TEXT)
    line, text = sealed.split(b"\n", 1)
    proof = json.loads(line)
    assert text == TEXT
    assert base64.b64decode(proof["certificate"]) == north.certificate.public_bytes(Encoding.DER)
    # By the library alone: Ed25519 over the context that is written here, and the text.
    north.certificate.public_key().verify(base64.b64decode(proof["signature"]), b"medfed-1 sealed\n" + TEXT)
    assert Identity(folders["south"]).open(sealed, "north") == TEXT
    assert Identity(folders["hub"]).open(sealed, "north") == TEXT


def resealed(sealed: bytes, **changed: str) -> bytes:
    line, text = sealed.split(b"\n", 1)
    return json.dumps({**json.loads(line), **changed}).encode() + b"\n" + text


def certificate_of(sealed: bytes) -> bytes:
    return base64.b64decode(json.loads(sealed.split(b"\n", 1)[0])["certificate"])


def of_version(sealed: bytes, version: int) -> str:
    """Return the certificate as one of an X.509 version that there is not."""
    der = certificate_of(sealed)
    given = b"\xa0\x03\x02\x01\x02"  # [0] INTEGER 2: version 3
    assert der.count(given) == 1
    return base64.b64encode(der.replace(given, given[:-1] + bytes([version]))).decode()


def misnamed(sealed: bytes) -> str:
    """Return the certificate with names that are no UTF-8."""
    der = certificate_of(sealed)
    assert b"\x0c\x05north" in der  # a UTF8String of 5 bytes
    return base64.b64encode(der.replace(b"\x0c\x05north", b"\x0c\x05nort\xff")).decode()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda sealed: sealed[:-1] + b"E", "its signature by 'north' is invalid: the text was changed"),
        (lambda sealed: resealed(sealed, signature=""), "carries no signature"),
        (lambda sealed: resealed(sealed, signature="%"), "its certificate cannot be decoded"),
        (lambda sealed: resealed(sealed, certificate="AAAA"), "its certificate cannot be decoded"),
        (
            lambda sealed: resealed(sealed, more="x"),
            r"text of \d+ bytes cannot be decoded: .*`more`",
        ),
        (lambda sealed: sealed.partition(b"\n")[0], r"cannot be decoded: no second line"),
        (lambda sealed: b"", "a sealed text of 0 bytes cannot be decoded"),
        (lambda sealed: b'{"certificate": "\xff"}\n', "a sealed text of 21 bytes cannot be decoded: 'utf-8'"),
        (lambda sealed: b"[" * 100_000 + b"\n", "a sealed text of 100001 bytes cannot be decoded"),
        (lambda sealed: resealed(sealed, signature="\u00e9"), "its certificate cannot be decoded"),
        (lambda sealed: resealed(sealed, certificate=of_version(sealed, 9)), "certificate cannot be decoded"),
        (lambda sealed: resealed(sealed, certificate=misnamed(sealed)), "certificate of '.*' is not from"),
    ],
)
def test_a_sealed_text_that_was_changed_is_refused(north, change, message):
    with pytest.raises(WireError, match=message):
        north.open(change(north.seal(TEXT)), "north")


def test_between_parties_of_one_process_a_signature_that_is_none_is_refused():
    seal = SessionSeal("north", {})
    with pytest.raises(WireError, match="its signature by 'north' is invalid"):
        seal.open(resealed(seal.seal(TEXT), signature="\u00e9"), "north")


def test_one_party_cannot_pose_as_another(north, folders):
    with pytest.raises(WireError, match="it is signed by 'south', expected 'hub': one party poses"):
        north.open(Identity(folders["south"]).seal(TEXT), "hub")


def test_a_party_of_another_federation_is_refused(north, folders):
    with pytest.raises(WireError, match="the certificate of 'north' is not from this federation's authority"):
        north.open(Identity(folders["stranger"]).seal(TEXT), "north")


def test_a_revocation_takes_effect_at_once(folders, north, tmp_path):
    hub = Identity(copied(folders["hub"], tmp_path / "hub"))
    sealed = north.seal(TEXT)
    assert hub.open(sealed, "north") == TEXT
    (hub.folder / "revoked.txt").write_text(f"1f\n{serial_number(north.certificate)}\n")
    with pytest.raises(WireError, match="the certificate of 'north' was revoked"):
        hub.open(sealed, "north")
    assert hub.open(Identity(folders["south"]).seal(TEXT), "south") == TEXT


def test_a_certificate_that_expires_today_is_no_longer_taken_tomorrow(north, monkeypatch):
    expiry = north.certificate.not_valid_after_utc
    sealed = north.seal(TEXT)

    class Clock(datetime):
        moment = expiry

        @classmethod
        def now(cls, tz=None):
            return cls.moment

    monkeypatch.setattr(signing, "datetime", Clock)
    assert north.open(sealed, "north") == TEXT
    assert north.check() is north
    Clock.moment = expiry + timedelta(seconds=1)
    with pytest.raises(WireError, match=rf"the certificate of 'north' expired on {expiry:%Y-%m-%d}"):
        north.open(sealed, "north")
    with pytest.raises(ExchangeError, match=rf"north's certificate expired on {expiry:%Y-%m-%d}"):
        north.check()


def test_a_signature_is_valid_in_its_own_context_only(north):
    signature = north.sign(b"a log\n", TEXT)
    check_signature(north.certificate, b"a log\n", TEXT, signature)
    with pytest.raises(InvalidSignature):
        check_signature(north.certificate, b"medfed-1 sealed\n", TEXT, signature)


def test_names_serial_numbers_and_issuers_are_those_of_the_certificate(north, folders):
    assert (north.name, common_name(north.certificate)) == ("north", "north")
    assert int(serial_number(north.certificate), 16) == north.certificate.serial_number
    check_issued(north.certificate, north.authority)
    with pytest.raises(WireError, match="made by another `medfed enrol init`"):
        check_issued(north.certificate, Identity(folders["stranger"]).authority)


@pytest.mark.parametrize(
    "file, remedy",
    [
        ("identity.key", "make one with `medfed enrol`"),
        ("identity.pem", "run `medfed enrol accept` with the coordinator's kit"),
    ],
)
def test_an_identity_without_a_file_says_which_and_what_to_do(folders, tmp_path, file, remedy):
    folder = copied(folders["north"], tmp_path / "north", without=file)
    with pytest.raises(ExchangeError, match=rf"no usable {file} \(FileNotFoundError\); {remedy}") as caught:
        load_seal(str(folder))
    assert str(tmp_path) not in str(caught.value)
    (folder / file).write_text("rubbish")
    with pytest.raises(ExchangeError, match=rf"no usable {file} \(ValueError\)"):
        load_seal(str(folder))


def test_a_key_of_another_certificate_is_refused(folders, tmp_path):
    folder = copied(folders["north"], tmp_path / "north")
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "identity.key").write_bytes(key)
    with pytest.raises(ExchangeError, match=r"identity\.key is not the key of north's certificate"):
        load_seal(str(folder))


def test_without_credentials_nothing_is_signed():
    seal = load_seal("")
    assert seal == Unsigned()
    line, text = seal.seal(TEXT).split(b"\n", 1)
    assert (json.loads(line), text) == ({}, TEXT)
    assert seal.open(seal.seal(TEXT), "anyone") == TEXT


def test_parties_of_one_process_know_one_anothers_keys():
    keys: dict[str, Ed25519PrivateKey] = {}
    north, hub = SessionSeal("north", keys), SessionSeal("hub", keys)
    sealed = north.seal(TEXT)
    assert hub.open(sealed, "north") == TEXT
    for data, party in ((sealed, "hub"), (sealed, "unknown"), (sealed[:-1] + b"E", "north")):
        with pytest.raises(WireError, match=f"its signature by '{party}' is invalid"):
            hub.open(data, party)
    # A second object of the same party keeps the key that it has.
    assert SessionSeal("north", keys).open(sealed, "north") == TEXT
