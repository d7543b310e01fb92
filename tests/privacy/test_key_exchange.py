"""Keys that two sites agree on, and messages that the hub forwards."""

from __future__ import annotations

import hashlib
import hmac

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from medfed.errors import PrivacyError, WireError
from medfed.privacy._key_exchange import (
    EncryptedBySite,
    PublicKeys,
    RelayedMessages,
    agreed_key,
    check_keys,
    derived,
    open_relayed,
    parse,
    party_keys,
    require_signatures,
    to_bytes,
)
from medfed.wire.messages import FORMAT, Message, SiteChannel, Statement


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


P = 2**255 - 19
# Every point of small order (Bernstein, https://cr.yp.to/ecdh.html#validate), also as numbers above P; X25519
# ignores the highest bit (RFC 7748, section 5).
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
SMALL_ORDER = [
    (number + high).to_bytes(32, "little")
    for number in (0, 1, *ORDER_8, P - 1, P, P + 1)
    for high in (0, 2**255)
]


@pytest.mark.parametrize("point", SMALL_ORDER, ids=bytes.hex)
def test_a_key_of_small_order_is_refused(point):
    with pytest.raises(PrivacyError, match="its public key is not a usable X25519 key"):
        agreed_key(X25519PrivateKey.generate(), point, "mask")


def test_content_of_another_kind_is_refused():
    encrypted = EncryptedBySite({"south": b"\x00\x01"})
    assert parse(to_bytes(encrypted), EncryptedBySite, "north", "shares") == encrypted
    for data in (b"{", b'{"by_site": {}, "more": 1}', b"[" * 100_000):
        with pytest.raises(WireError, match="the message of 'north' for step 'shares' cannot be decoded"):
            parse(data, EncryptedBySite, "north", "shares")


MESSAGE = Message(
    FORMAT, "study", "run", "south", "hub", 3, 2, "shares", to_bytes(EncryptedBySite({"north": b"x"}))
)


STATED = msgspec.structs.replace(MESSAGE, data=msgspec.json.encode(Statement("", MESSAGE.data)))


class Forwarding:
    """An exchange that opens every forwarded message as the same one, or refuses it."""

    def __init__(self, message: Message | None, signed: bool = True) -> None:
        self.message, self.signed = message, signed

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        if self.message is None:
            raise WireError(f"its signature by '{party}' is invalid")
        return self.message


def opened(message: Message | None) -> EncryptedBySite:
    channel = SiteChannel(Forwarding(message), "north", 3, parties=("north", "south"))
    return open_relayed(channel, b"sealed", EncryptedBySite, "south", "shares", 2)


def test_a_forwarded_message_is_its_writers_of_this_step():
    assert opened(STATED) == EncryptedBySite({"north": b"x"})
    with pytest.raises(PrivacyError, match="round 3: the hub forwards a message in the name of"):
        opened(None)


@pytest.mark.parametrize("change", [{"round": 2}, {"attempt": 1}, {"step": "keys"}])
def test_a_copy_of_another_rounds_attempts_or_steps_message_is_refused(change):
    with pytest.raises(PrivacyError, match=r"expected round 3, attempt 2, 'shares': a copy of an older one"):
        opened(msgspec.structs.replace(STATED, **change))


def test_messages_without_signatures_are_refused():
    require_signatures(SiteChannel(Forwarding(None), "north", 1), "secure_sum", "read it")
    message = r"'north': privacy\.kind: ckks needs .* signatures, else whoever carries them can read it; set"
    with pytest.raises(PrivacyError, match=message):
        require_signatures(SiteChannel(Forwarding(None, signed=False), "north", 1), "ckks", "read it")


class Shown(PublicKeys, frozen=True):
    """One public key."""

    key: bytes

    @property
    def x25519(self) -> tuple[bytes, ...]:
        return (self.key,)


def shown(site: str) -> Shown:
    secret = hashlib.sha256(site.encode()).digest()
    return Shown(X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())


class Relay:
    """An exchange where the sealed text is a site's message, so that anyone may be shown."""

    signed = True

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        content = msgspec.json.encode(Statement("", sealed))
        return msgspec.structs.replace(STATED, party=party, step="keys", data=content)


def agreed(*sites: str, own: Shown | None = None, parties=("north", "south", "west"), min_sites: int = 2):
    channel = SiteChannel(Relay(), "north", 3, parties=parties, min_sites=min_sites)
    relayed = RelayedMessages({site: to_bytes(shown(site)) for site in sites})
    return party_keys(channel, relayed, own or shown("north"), "keys", 2)


def test_parties_are_the_hospitals_that_showed_keys():
    assert agreed("north", "west") == {"north": shown("north"), "west": shown("west")}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sites": ("north", "far")}, "the hub shows 'far' as a party"),
        ({"sites": ("south", "west")}, "the hub's list of keys lacks this site's own; nothing is sent"),
        ({"sites": ("north", "west"), "own": shown("old")}, "the hub's list of keys lacks this site's own"),
        ({"sites": ("north", "west"), "min_sites": 3}, "2 of 3 hospitals showed keys, 3 are needed"),
        (
            {"sites": ("north", "west"), "parties": ("west",)},
            r"it is not among the hospitals that train \(west\)",
        ),
        ({"sites": ("north",), "parties": ()}, r"it is not among the hospitals that train \(none\)"),
    ],
)
def test_a_list_of_parties_that_a_hub_made_up_is_refused(arguments, message):
    with pytest.raises(PrivacyError, match=rf"site 'north', round 3: {message}"):
        agreed(*arguments.pop("sites"), **arguments)


@pytest.mark.parametrize(
    "key, message",
    [
        (bytes(31), "site 'south': a key of 31 bytes; X25519's have 32"),
        (shown("north").key, "sites 'north' and 'south' show the same key: one speaks for both"),
        (bytes(32), "site 'south': its public key is not a usable X25519 key"),
    ],
)
def test_a_public_key_that_is_unusable_or_shown_twice_is_refused(key, message):
    check_keys({"north": shown("north"), "south": shown("south")})
    for known in (None, {"north": shown("north")}):
        keys = {"south": Shown(key)} if known else {"north": shown("north"), "south": Shown(key)}
        with pytest.raises(PrivacyError, match=message):
            check_keys(keys, known)
