"""How all sites of a study come to one key, which the hub relays and cannot read."""

from __future__ import annotations

import hashlib
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medfed.errors import PrivacyError, QuorumError
from medfed.exchange import DropOut, MemoryExchange
from medfed.privacy._ckks_keys import (
    ANNOUNCED,
    ENCRYPTED_KEYS,
    KeyAnnouncement,
    dealer,
    relay_keys,
    shared_key,
)
from medfed.privacy._key_exchange import to_bytes
from medfed.wire.messages import HubChannel, SiteChannel
from medfed.wire.update import GlobalModel

SITES = ("east", "north", "south")
STUDY_KEY = b"the key of the study"
PATIENCE_S = 30


def run(held: dict[str, bytes], sites=SITES):
    """Let all sites ask for the key in one round; return what each got, who made it, and all bytes sent."""
    seen: list[bytes] = []
    exchange = MemoryExchange("study", on_bytes=seen.append)
    exchange.publish(GlobalModel(0, {}, study_digest="study"))
    made, keys = [], {}

    def ask(site: str) -> None:
        channel = SiteChannel(exchange, site, 1, parties=sites)
        if site in held:
            channel.store_secret("ckks", held[site])

        def make() -> bytes:
            made.append(site)
            return STUDY_KEY

        try:
            keys[site] = shared_key(channel, make)
        except PrivacyError as error:
            keys[site] = error
            exchange.drop_out(site, DropOut.ERROR)

    threads = [threading.Thread(target=ask, args=(site,), daemon=True) for site in sites]
    for thread in threads:
        thread.start()
    try:
        relayed = relay_keys(HubChannel(exchange, sites, 1), PATIENCE_S, PATIENCE_S, 1)
    finally:
        exchange.close()
        for thread in threads:
            thread.join(PATIENCE_S)
    return keys, made, relayed, b"".join(seen)


def test_the_first_site_makes_the_key_and_all_others_get_it():
    keys, made, (sites, refused), sent = run({})
    assert keys == dict.fromkeys(SITES, STUDY_KEY)
    assert made == ["east"]
    assert (sites, refused) == (list(SITES), {})
    assert STUDY_KEY not in sent


def test_a_site_that_holds_the_key_gives_it_to_one_that_lost_it():
    keys, made, _, _ = run({"north": STUDY_KEY, "south": STUDY_KEY})
    assert keys == dict.fromkeys(SITES, STUDY_KEY)
    assert made == []


def test_sites_that_hold_different_keys_stop():
    with pytest.raises(QuorumError, match="site 'north' was to give the study's key to east and did not"):
        run({"north": STUDY_KEY, "south": b"the key of another run"})


def public_key(site: str) -> bytes:
    return X25519PrivateKey.from_private_bytes(site.encode().ljust(32)).public_key().public_bytes_raw()


def announce(exchange: MemoryExchange, *sites: str) -> None:
    for site in sites:
        SiteChannel(exchange, site, 1).send(1, ANNOUNCED, to_bytes(KeyAnnouncement(public_key(site))))


def announced(**held: bytes) -> dict[str, KeyAnnouncement]:
    return {site: KeyAnnouncement(bytes(32), digest) for site, digest in held.items()}


def test_the_dealer_is_the_first_that_holds_the_key_or_the_first_of_all():
    digest = hashlib.sha256(STUDY_KEY).digest()
    assert dealer(announced(b=b"", a=b"", c=b"")) == "a"
    assert dealer(announced(b=digest, a=b"", c=digest)) == "b"


def test_a_round_of_too_few_sites_says_what_to_do():
    exchange = MemoryExchange("study")
    with pytest.raises(QuorumError, match=r"round 1: 0 of 3 sites showed a key, 2 are needed .* --resume"):
        relay_keys(HubChannel(exchange, SITES, 1), 0.05, 0.05, 2)


def test_a_dealer_that_falls_silent_is_named():
    exchange = MemoryExchange("study")
    exchange.publish(GlobalModel(0, {}, study_digest="study"))
    announce(exchange, "east", "north")
    with pytest.raises(QuorumError, match="site 'east' was to give the study's key to north and did not"):
        relay_keys(HubChannel(exchange, ("east", "north"), 1), PATIENCE_S, 0.05, 2)


def test_a_message_that_is_no_announcement_is_refused_and_the_others_go_on():
    exchange = MemoryExchange("study")
    exchange.publish(GlobalModel(0, {}, study_digest="study"))
    SiteChannel(exchange, "east", 1).send(1, ANNOUNCED, b"rubbish")
    announce(exchange, "north")
    sites, refused = relay_keys(HubChannel(exchange, ("east", "north"), 1), PATIENCE_S, PATIENCE_S, 1)
    assert sites == ["north"]
    assert "the message of 'east' for step 'ckks-keys' cannot be decoded" in str(refused["east"])
    assert exchange.sent_messages(ENCRYPTED_KEYS) is None
