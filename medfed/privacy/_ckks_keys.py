"""One secret key for all sites of a study, which the hub carries to them and cannot read.

In each round every site shows its public key for boxes, and whether it holds the study's key. The first
site by name that holds it, or else the first of all, which then makes it, puts it into a box for each site
that does not. So a study begins with the key, and a site that lost its folder gets it again in the next
round it takes part in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medfed.errors import MedfedError, PrivacyError, QuorumError, WireError
from medfed.wire.messages import HubChannel, SiteChannel

# Under which names a site keeps the study's key and its own key for boxes.
KEY, BOX = "ckks", "ckks-box"
SHOWN, BOXES = "ckks-keys", "ckks-boxes"
# There is one attempt at a round's messages: nothing in them depends on who goes on.
ONLY = 1


class Shown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site's public key for boxes, and the digest of the study's key if it holds it."""

    box: bytes
    holds: bytes = b""


class RelayedMessages(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sites' messages, sealed as they came, by site."""

    messages: dict[str, bytes] = msgspec.field(name="letters")


class Boxes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The study's key in boxes, by the site that opens each."""

    boxes: dict[str, bytes]


def agreed(channel: SiteChannel, make: Callable[[], bytes]) -> bytes | None:
    """Return the study's key at a site, made or received if it has none yet; None if the round
    went on without it.

    Raises:
        PrivacyError: if the hub or a site does what is not agreed.
    """
    if not channel.signed:
        raise PrivacyError(
            f"site '{channel.site}': privacy.kind: ckks needs messages with signatures, else whoever carries them can speak "
            f"as a site and be given the key; set exchange.credentials (`medfed enrol` makes them)"
        )
    box, key = _box_key(channel), channel.load_secret(KEY)
    holds = hashlib.sha256(key).digest() if key else b""
    channel.send(ONLY, SHOWN, msgspec.json.encode(Shown(box.public_key().public_bytes_raw(), holds)))
    found = channel.receive({SHOWN: ONLY})
    if found is None:
        return None
    shown = {
        party: read(_opened(channel, sealed, party, SHOWN), Shown)
        for party, sealed in read(found.data, RelayedMessages).messages.items()
    }
    if channel.site not in shown:
        return None
    first = giver(shown)
    if len({one.holds for one in shown.values() if one.holds}) > 1:
        raise PrivacyError(
            f"site '{channel.site}', round {channel.round}: sites of this study hold different keys; start the run anew"
        )
    if first == channel.site:
        if key is None:
            key = make()
            channel.store_secret(KEY, key)
        lacking = [party for party, one in shown.items() if not one.holds and party != channel.site]
        boxes = {
            party: _cipher(box, shown[party].box, first, party).encrypt(bytes(12), key, None)
            for party in lacking
        }
        channel.send(ONLY, BOXES, msgspec.json.encode(Boxes(boxes)))
    elif key is None:
        found = channel.receive({BOXES: ONLY})
        if found is None:
            return None
        key = _unboxed(channel, box, shown, first, found.data)
        channel.store_secret(KEY, key)
    return key


def giver(shown: Mapping[str, Shown]) -> str:
    """Return the site that gives the study's key to those that lack it."""
    return min((party for party, one in shown.items() if one.holds), default=min(shown))


def carried(
    channel: HubChannel, deadline_s: float | None, patience_s: float
) -> tuple[list[str], dict[str, MedfedError]]:
    """Carry the sites' messages at the hub; return the sites that hold the key or get it, and those refused.

    Raises:
        QuorumError: if no site is there, or the one that gives the key does not.
    """
    refused: dict[str, MedfedError] = {}
    sealed: dict[str, bytes] = {}
    shown: dict[str, Shown] = {}
    for delivery in channel.collect(ONLY, SHOWN, channel.sites, deadline_s):
        try:
            if delivery.message is None:
                raise delivery.error or WireError("no message")
            shown[delivery.site] = read(delivery.message.data, Shown)
            sealed[delivery.site] = delivery.sealed
        except MedfedError as error:
            refused[delivery.site] = error
    if not shown:
        raise QuorumError(
            f"round {channel.round}: no site showed a key; start the sites and go on with --resume"
        )
    stands = channel.send(
        ONLY, SHOWN, dict.fromkeys(sorted(shown), msgspec.json.encode(RelayedMessages(sealed)))
    )
    shown = {site: one for site, one in shown.items() if site in stands}
    first = giver(shown)
    lacking = [site for site, one in shown.items() if not one.holds and site != first]
    if lacking:
        (given,) = list(channel.collect(ONLY, BOXES, [first], patience_s)) or (None,)
        if given is None or given.message is None:
            raise QuorumError(
                f"round {channel.round}: site '{first}' was to give the study's key to {', '.join(lacking)} and did not"
                f"{f': {given.error}' if given else ''}; start it again and go on with --resume"
            )
        handed = msgspec.json.encode(RelayedMessages({first: given.sealed}))
        channel.send(ONLY, BOXES, dict.fromkeys(sorted(lacking), handed))
    return sorted(shown), refused


def read(data: bytes, kind: type) -> Any:
    """Return the content of a message.

    Raises:
        WireError: if it is none of this kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WireError(f"a message about keys does not read: {str(error)[:200]}") from None


def _box_key(channel: SiteChannel) -> X25519PrivateKey:
    kept = channel.load_secret(BOX)
    if kept is None:
        kept = X25519PrivateKey.generate().private_bytes_raw()
        channel.store_secret(BOX, kept)
    return X25519PrivateKey.from_private_bytes(kept)


def _opened(channel: SiteChannel, sealed: bytes, party: str, step: str) -> bytes:
    try:
        message = channel.open(sealed, party)
    except WireError as error:
        raise PrivacyError(
            f"site '{channel.site}', round {channel.round}: the hub hands on a message in the name of '{party}' that is not "
            f"its own: {error}"
        ) from None
    if (message.step, message.round) != (step, channel.round):
        raise PrivacyError(
            f"site '{channel.site}', round {channel.round}: the hub hands on a message of '{party}' of another round or step"
        )
    return message.data


def _unboxed(
    channel: SiteChannel, box: X25519PrivateKey, shown: Mapping[str, Shown], first: str, data: bytes
) -> bytes:
    handed = read(data, RelayedMessages).messages
    boxes = read(_opened(channel, handed.get(first, b""), first, BOXES), Boxes).boxes
    try:
        return _cipher(box, shown[first].box, first, channel.site).decrypt(
            bytes(12), boxes[channel.site], None
        )
    except (KeyError, InvalidTag):
        raise PrivacyError(
            f"site '{channel.site}', round {channel.round}: site '{first}' gave no key that opens here; start both again"
        ) from None


def _cipher(own: X25519PrivateKey, theirs: bytes, sender: str, receiver: str) -> AESGCM:
    # A pair's key boxes one thing, the study's key, so a nonce of zero never meets two texts.
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise PrivacyError("a public key of a site is no key of X25519 that hides anything") from None
    return AESGCM(
        HKDF(SHA256(), 32, salt=None, info=f"medfed-1 ckks {sender} to {receiver}".encode()).derive(shared)
    )
