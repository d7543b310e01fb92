"""Keys that two sites agree on, and messages that the hub forwards."""

from __future__ import annotations

import hashlib
import hmac

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from medfed.errors import PrivacyError, WireError
from medfed.privacy._key_exchange import (
    Boxes,
    agreed_key,
    derived,
    open_relayed,
    parse,
    require_signatures,
    to_bytes,
)
from medfed.wire.messages import FORMAT, Message, SiteChannel


def test_derived_is_hkdf_with_sha256_by_its_definition():
    # RFC 5869 without salt: PRK = HMAC(zeros, secret), the first block is HMAC(PRK, info || 1).
    extracted = hmac.digest(bytes(32), b"secret", hashlib.sha256)
    assert derived(b"secret", "a purpose") == hmac.digest(
        extracted, b"medfed-1 a purpose\x01", hashlib.sha256
    )


def test_both_sites_agree_and_each_purpose_has_its_own_key():
    north, south = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    one = agreed_key(north, south.public_key().public_bytes_raw(), "mask")
    assert one == agreed_key(south, north.public_key().public_bytes_raw(), "mask")
    assert one != agreed_key(north, south.public_key().public_bytes_raw(), "box")
    shared = north.exchange(X25519PublicKey.from_public_bytes(south.public_key().public_bytes_raw()))
    assert one == derived(shared, "mask")


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little")])
def test_a_key_of_small_order_is_refused(point):
    with pytest.raises(PrivacyError, match="not a usable X25519 key"):
        agreed_key(X25519PrivateKey.generate(), point, "mask")


def test_content_of_another_kind_is_refused():
    boxes = Boxes({"south": b"\x00\x01"})
    assert parse(to_bytes(boxes), Boxes, "north", "shares") == boxes
    for data in (b"{", b'{"boxes": {}, "more": 1}', b"[" * 100_000):
        with pytest.raises(WireError, match="the message of 'north' for step 'shares' cannot be decoded"):
            parse(data, Boxes, "north", "shares")


MESSAGE = Message(FORMAT, "study", "run", "south", "hub", 3, 2, "shares", to_bytes(Boxes({"north": b"x"})))


class Forwarding:
    """An exchange that opens every forwarded message as the same one, or refuses it."""

    def __init__(self, message: Message | None, signed: bool = True) -> None:
        self.message, self.signed = message, signed

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        if self.message is None:
            raise WireError(f"its signature by '{party}' is invalid")
        return self.message


def opened(message: Message | None) -> Boxes:
    channel = SiteChannel(Forwarding(message), "north", 3)
    return open_relayed(channel, b"sealed", Boxes, "south", "shares", 2)


def test_a_forwarded_message_is_its_writers_of_this_step():
    assert opened(MESSAGE) == Boxes({"north": b"x"})
    with pytest.raises(PrivacyError, match="round 3: the hub forwards a message in the name of"):
        opened(None)


@pytest.mark.parametrize("change", [{"round": 2}, {"attempt": 1}, {"step": "keys"}])
def test_a_copy_of_another_rounds_attempts_or_steps_message_is_refused(change):
    with pytest.raises(PrivacyError, match=r"expected round 3, attempt 2, 'shares': a copy of an older one"):
        opened(msgspec.structs.replace(MESSAGE, **change))


def test_messages_without_signatures_are_refused():
    require_signatures(SiteChannel(Forwarding(None), "north", 1), "secure_sum", "read it")
    message = r"'north': privacy\.kind: ckks needs .* signatures, else whoever carries them can read it; set"
    with pytest.raises(PrivacyError, match=message):
        require_signatures(SiteChannel(Forwarding(None, signed=False), "north", 1), "ckks", "read it")
