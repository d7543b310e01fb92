"""One secret key for all sites of a study, which the hub relays and cannot read.

In each round every site announces its public encryption key, and whether it holds the study's key. The first
site by name that holds it, or else the first of all, which then creates it, encrypts it for each site that
lacks it. So a study begins with the key, and a site that lost its folder gets it again in its next round.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medfed.errors import MedfedError, PrivacyError, QuorumError, WireError
from medfed.privacy._key_exchange import (
    EncryptedBySite,
    PublicKeys,
    RelayedMessages,
    agreed_key,
    check_keys,
    open_relayed,
    parse,
    party_keys,
    require_signatures,
    to_bytes,
)
from medfed.wire.messages import HubChannel, SiteChannel

# The names under which a site keeps the study's key and its own encryption key.
KEY, BOX = "ckks", "ckks-box"
ANNOUNCED, ENCRYPTED_KEYS = "ckks-keys", "ckks-encrypted-keys"
# A round's key exchange has one attempt: nothing in it depends on which sites remain.
ONLY_ATTEMPT = 1


class KeyAnnouncement(PublicKeys, frozen=True):
    """A site's public encryption key, and the digest of the study's key if it holds that."""

    box: bytes
    holds: bytes = b""

    @property
    def x25519(self) -> tuple[bytes, ...]:
        return (self.box,)


class DealtKeys(EncryptedBySite, frozen=True):
    """The study's key as the dealer encrypted it for each site that lacks it, and the key's SHA-256.

    All of them are given this one signed message, so that a dealer that gives them different keys is known.
    """

    sha256: bytes


def shared_key(channel: SiteChannel, make: Callable[[], bytes]) -> bytes | None:
    """Return the study's key at a site, created or received if missing; None if the site is left out.

    Raises:
        PrivacyError: if the hub or a site violates the protocol.
    """
    require_signatures(channel, "ckks", "speak as a site and be given the key")
    with channel.logged_refusals():
        return _shared_key(channel, make)


def _shared_key(channel: SiteChannel, make: Callable[[], bytes]) -> bytes | None:
    box, key = _box_key(channel), channel.load_secret(KEY)
    announced = _announce(channel, box, key)
    if announced is None:
        return None
    first = dealer(announced)
    if of_other_keys(announced):
        holders = [f"{site} {one.holds.hex()[:8]}" for site, one in sorted(announced.items()) if one.holds]
        raise PrivacyError(
            f"{channel.who}: sites of this study hold different keys: {', '.join(holders)} (the first digits "
            "of their SHA-256), and the hub should have refused all but those of one key; nothing is sent. "
            "Let the odd one restore its run folder, or start a new run"
        )
    if first == channel.site:
        if key is None:
            key = make()
            channel.store_secret(KEY, key)
        _deal(channel, box, key, announced)
    elif key is None:
        answer = channel.receive({ENCRYPTED_KEYS: ONLY_ATTEMPT})
        if answer is None:
            return None
        key = _open_sealed_key(channel, box, announced, first, answer.data)
        channel.store_secret(KEY, key)
    return key


def _announce(
    channel: SiteChannel, box: X25519PrivateKey, key: bytes | None
) -> dict[str, KeyAnnouncement] | None:
    """Announce this site's public key, and return all sites' announcements; None if the round is over."""
    holds = hashlib.sha256(key).digest() if key else b""
    own = KeyAnnouncement(box.public_key().public_bytes_raw(), holds)
    channel.send(ONLY_ATTEMPT, ANNOUNCED, to_bytes(own))
    if (sent := channel.sent(ANNOUNCED)) is not None:
        # The first message counts: an earlier process may have sent one before it got the study's key.
        own = parse(sent.data, KeyAnnouncement, channel.site, ANNOUNCED)
    answer = channel.receive({ANNOUNCED: ONLY_ATTEMPT})
    if answer is None:
        return None
    relayed = parse(answer.data, RelayedMessages, "hub", ANNOUNCED)
    return party_keys(channel, relayed, own, ANNOUNCED, ONLY_ATTEMPT)


def _deal(
    channel: SiteChannel, box: X25519PrivateKey, key: bytes, announced: Mapping[str, KeyAnnouncement]
) -> None:
    """Send the study's key, encrypted for each site that lacks it."""
    encrypted = {
        party: _cipher(channel, box, one.box, channel.site, party).encrypt(bytes(12), key, None)
        for party, one in announced.items()
        if not one.holds and party != channel.site
    }
    dealt = DealtKeys(encrypted, hashlib.sha256(key).digest())
    channel.send(ONLY_ATTEMPT, ENCRYPTED_KEYS, to_bytes(dealt))


def dealer(announced: Mapping[str, KeyAnnouncement]) -> str:
    """Return the site that distributes the study's key to those that lack it."""
    return min((party for party, one in announced.items() if one.holds), default=min(announced))


def of_other_keys(announced: Mapping[str, KeyAnnouncement]) -> list[str]:
    """Return the sites that say that they hold another key than most of those that hold one.

    Of keys that equally many hold, that of the first site by name counts.
    """
    holders = {site: one.holds for site, one in sorted(announced.items()) if one.holds}
    if len({*holders.values()}) < 2:
        return []
    ((most, _),) = Counter(holders.values()).most_common(1)  # of equal counts, the first that was counted
    return [site for site, holds in holders.items() if holds != most]


def relay_keys(
    channel: HubChannel, deadline_s: float | None, patience_s: float, min_sites: int
) -> tuple[list[str], dict[str, MedfedError]]:
    """Relay the key exchange at the hub; return the sites that hold or get the key, and those refused.

    Raises:
        QuorumError: if too few sites are there, or the dealer does not distribute the key.
    """
    refused: dict[str, MedfedError] = {}
    sealed: dict[str, bytes] = {}
    announced: dict[str, KeyAnnouncement] = {}
    for received in channel.collect(ONLY_ATTEMPT, ANNOUNCED, channel.sites, deadline_s):
        try:
            if received.message is None:
                raise received.error or WireError("no message")
            own = parse(received.message.data, KeyAnnouncement, received.site, ANNOUNCED)
            check_keys({received.site: own}, announced)
            announced[received.site] = own
            sealed[received.site] = received.sealed
        except MedfedError as error:
            if received.message is not None:
                channel.log_refusal(received.site, ANNOUNCED, error)
            refused[received.site] = error
    for site in of_other_keys(announced):
        other_key = PrivacyError(
            f"site '{site}', round {channel.round}: it says that it holds another key of the study than "
            "most of the others; let it restore its run folder"
        )
        channel.log_refusal(site, ANNOUNCED, other_key)
        refused[site] = other_key
        del announced[site], sealed[site]
    if len(announced) < min_sites:
        refusals = "".join(f"{site}: {error}. " for site, error in sorted(refused.items()))
        raise QuorumError(
            f"round {channel.round}: {len(announced)} of {len(channel.sites)} sites showed a key, "
            f"{min_sites} are needed (privacy.min_sites). {refusals}Start the sites that "
            "stopped and go on with --resume"
        )
    valid = channel.send(
        ONLY_ATTEMPT, ANNOUNCED, dict.fromkeys(sorted(announced), to_bytes(RelayedMessages(sealed)))
    )
    announced = {site: one for site, one in announced.items() if site in valid}
    _relay_sealed_keys(channel, announced, patience_s)
    return sorted(announced), refused


def _relay_sealed_keys(
    channel: HubChannel, announced: Mapping[str, KeyAnnouncement], patience_s: float
) -> None:
    """Forward the dealer's encrypted keys to the sites that lack the study's key."""
    first = dealer(announced)
    lacking = [site for site, one in announced.items() if not one.holds and site != first]
    if not lacking:
        return
    (dealt,) = list(channel.collect(ONLY_ATTEMPT, ENCRYPTED_KEYS, [first], patience_s)) or (None,)
    if dealt is None or dealt.message is None:
        raise QuorumError(
            f"round {channel.round}: site '{first}' was to give the study's key to {', '.join(lacking)} "
            f"and did not{f': {dealt.error}' if dealt else ''}; start it again and go on with --resume"
        )
    relayed = to_bytes(RelayedMessages({first: dealt.sealed}))
    channel.send(ONLY_ATTEMPT, ENCRYPTED_KEYS, dict.fromkeys(sorted(lacking), relayed))


def _box_key(channel: SiteChannel) -> X25519PrivateKey:
    secret = channel.load_secret(BOX)
    if secret is None:
        secret = X25519PrivateKey.generate().private_bytes_raw()
        channel.store_secret(BOX, secret)
    return X25519PrivateKey.from_private_bytes(secret)


def _open_sealed_key(
    channel: SiteChannel,
    box: X25519PrivateKey,
    announced: Mapping[str, KeyAnnouncement],
    first: str,
    data: bytes,
) -> bytes:
    sealed = parse(data, RelayedMessages, "hub", ENCRYPTED_KEYS).messages.get(first, b"")
    dealt = open_relayed(channel, sealed, DealtKeys, first, ENCRYPTED_KEYS, ONLY_ATTEMPT)
    try:
        key = _cipher(channel, box, announced[first].box, first, channel.site).decrypt(
            bytes(12), dealt.by_site[channel.site], None
        )
    except (KeyError, InvalidTag):
        raise PrivacyError(
            f"site '{channel.site}', round {channel.round}: site '{first}' gave no key that opens here; "
            "start both again"
        ) from None
    held = announced[first].holds
    if hashlib.sha256(key).digest() != dealt.sha256 or (held and held != dealt.sha256):
        raise PrivacyError(
            f"{channel.who}: site '{first}' gave another key than the one of which it says that it gives it "
            "to all; nothing is sent"
        )
    return key


def _cipher(channel: SiteChannel, own: X25519PrivateKey, theirs: bytes, sender: str, receiver: str) -> AESGCM:
    # A pair's key of a round encrypts one key of the study, so a zero nonce is never used for two plaintexts.
    return AESGCM(agreed_key(own, theirs, f"ckks {channel.round} {sender} to {receiver}"))
