"""How all sites of a study come to one key, which the hub relays and cannot read."""

from __future__ import annotations

import hashlib
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medfed.errors import ExchangeError, PrivacyError, QuorumError
from medfed.exchange import DropOut, MemoryExchange
from medfed.privacy import _ckks_keys as module
from medfed.privacy._ckks_keys import (
    ANNOUNCED,
    ENCRYPTED_KEYS,
    DealtKeys,
    KeyAnnouncement,
    dealer,
    of_other_keys,
    relay_keys,
    shared_key,
)
from medfed.privacy._key_exchange import parse, to_bytes
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
        except ExchangeError as error:  # the hub went on without it
            keys[site] = error

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


def test_a_site_that_says_that_it_holds_another_key_is_refused_by_name_and_the_others_go_on():
    keys, _, (sites, refused), _ = run({"north": STUDY_KEY, "south": b"the key of another run"})
    assert sites == ["east", "north"]
    assert keys["east"] == STUDY_KEY
    assert "site 'south' waits for a message of round 1, but the hub has closed" in str(keys["south"])
    assert list(refused) == ["south"]
    assert "site 'south', round 1: it says that it holds another key of the study" in str(refused["south"])


def test_the_key_that_most_hold_counts_and_of_equal_ones_that_of_the_first_site():
    assert of_other_keys(announced(a=b"x", b=b"y", c=b"y", d=b"")) == ["a"]
    assert of_other_keys(announced(c=b"x", a=b"y", b=b"z")) == ["b", "c"]
    assert of_other_keys(announced(a=b"x", b=b"", c=b"x")) == []


def test_a_hub_that_relays_announcements_of_different_keys_is_refused(monkeypatch):
    monkeypatch.setattr(module, "of_other_keys", of_other_keys_at_sites_only())
    keys, _, _, _ = run({"east": STUDY_KEY, "north": STUDY_KEY, "south": b"the key of another run"})
    ours, other = (hashlib.sha256(key).hexdigest()[:8] for key in (STUDY_KEY, b"the key of another run"))
    for site in SITES:
        assert f"site '{site}', round 1: sites of this study hold different keys" in str(keys[site])
        assert f"east {ours}, north {ours}, south {other}" in str(keys[site])


def of_other_keys_at_sites_only():
    """The hub's thread is the test's own; a hub that lies refuses nobody."""
    hub = threading.get_ident()
    return lambda announced: [] if threading.get_ident() == hub else of_other_keys(announced)


def test_a_dealer_that_gives_sites_different_keys_is_named(monkeypatch):
    """It announced no key before, so that nothing else would tell until the first sum is opened."""
    honest = module._deal

    def deal(channel, box, key, announced):
        class Lies:
            def send(self, attempt, step, data):
                dealt = parse(data, DealtKeys, "east", step)
                wrong = module._cipher(channel, box, announced["south"].box, "east", "south").encrypt(
                    bytes(12), b"a key of its own", None
                )
                by_site = {**dealt.by_site, "south": wrong}
                channel.send(attempt, step, to_bytes(DealtKeys(by_site, dealt.sha256)))

            def __getattr__(self, name):
                return getattr(channel, name)

        honest(Lies(), box, key, announced)

    monkeypatch.setattr(module, "_deal", deal)
    keys, _, _, _ = run({})
    assert keys["north"] == STUDY_KEY
    assert "site 'south', round 1: site 'east' gave another key than the one of which it says" in str(
        keys["south"]
    )


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
