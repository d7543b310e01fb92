"""Who must remain in a secure sum, who shares masks with whom, and which keys are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medfed.errors import PrivacyError
from medfed.privacy._secagg import (
    Keys,
    Settings,
    check_sum_keys,
    holders,
    neighbours,
    own_mask,
    pair_mask,
    required_sites,
    view,
)

SETTINGS = Settings(0.6, 3, 64, 1024.0, 100, 6, 30.0, 0)


def keys(number: int) -> Keys:
    return Keys(bytes([number]) * 32, bytes([100 + number]) * 32, bytes(32))


@pytest.mark.parametrize(
    "threshold, sites, colluding, needed",
    [
        (0.6, 5, 0, 3),
        (0.55, 100, 0, 55),
        (1.0, 7, 0, 7),
        (0.1, 2, 0, 2),
        (0.1, 1, 0, 2),  # never one alone
        (0.1, 9, 0, 5),  # more than half sign one list of two
        (0.6, 9, 3, 7),  # with a third colluding, more than two thirds: floor(2 * 9 / 3) + 1
    ],
)
def test_the_threshold_is_rounded_up_and_one_list_only_can_be_signed(threshold, sites, colluding, needed):
    # 0.55 * 100 is 55, although it is 55.00000000000001 in binary.
    assert required_sites(threshold, sites, colluding) == needed
    assert sites < 2 or 2 * needed > sites + colluding


def test_among_neighbours_an_arc_of_the_ring_cannot_be_unmasked():
    # Six neighbours: the last site of an arc keeps three of them, itself and who colludes; one share more.
    assert SETTINGS.required_shares(7) == required_sites(0.6, 7, 0) == 5
    assert SETTINGS.required_shares(20) == max(required_sites(0.6, 7, 0), 3 + 1 + 0 + 1) == 5
    assert replace(SETTINGS, colluding=2).required_shares(20) == 3 + 1 + 2 + 1


def test_the_study_may_ask_for_more_than_the_threshold():
    assert [SETTINGS.required(of) for of in (3, 5, 10)] == [3, 3, 6]
    SETTINGS.require("round 1", "showed keys", 6, 10)
    with pytest.raises(PrivacyError, match=r"round 1: 5 of 10 sites showed keys, 6 are needed"):
        SETTINGS.require("round 1", "showed keys", 5, 10)


def test_example_counts_are_whole_numbers():
    assert SETTINGS.whole_numbers(5).scale == 1.0
    assert SETTINGS.fixed_point(2).scale == 2.0**51


def test_few_sites_are_all_one_anothers_neighbours():
    assert neighbours({"b": keys(2), "a": keys(1), "c": keys(3)}, 2) == {
        "a": ["b", "c"],
        "b": ["a", "c"],
        "c": ["a", "b"],
    }


def test_many_sites_are_on_a_ring_that_all_keys_decide():
    shown = {f"s{number:02d}": keys(number) for number in range(12)}
    ring = neighbours(shown, 4)
    assert all(len(others) == 4 and site not in others for site, others in ring.items())
    assert all(site in ring[other] for site, others in ring.items() for other in others)
    # Connected: from any site, every other is reached.
    reached, frontier = set(), ["s00"]
    while frontier:
        site = frontier.pop()
        reached.add(site)
        frontier += [other for other in ring[site] if other not in reached]
    assert reached == set(shown)
    assert neighbours(dict(reversed(shown.items())), 4) == ring
    assert neighbours({**shown, "s11": keys(50)}, 4) != ring


def test_a_site_holds_a_share_of_its_own_secrets():
    assert holders("b", ["c", "a"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            Keys(b"\x01" * 32, b"\x09" * 32, bytes(32)),
            "sites 'a' and 'b' show the same key: one speaks",
        ),
        (Keys(b"\x65" * 32, b"\x09" * 32, bytes(32)), "sites 'a' and 'b' show the same key"),
        (Keys(b"\x09" * 32, b"\x09" * 32, bytes(32)), "sites 'b' and 'b' show the same key"),
        (Keys(b"\x09" * 31, b"\x08" * 32, bytes(32)), "site 'b': a key of 31 bytes; X25519's have 32"),
        (Keys(b"\x09" * 32, bytes(32), bytes(32)), "site 'b': its public key is not a usable X25519 key"),
        (Keys(b"\x09" * 32, b"\x08" * 32, bytes(31)), "site 'b': a digest of 31 bytes; SHA-256's have 32"),
    ],
)
def test_keys_that_are_unusable_or_of_two_sites_are_refused(changed, message):
    check_sum_keys({"a": keys(1), "b": keys(2)})
    with pytest.raises(PrivacyError, match=message):
        check_sum_keys({"b": changed, "a": keys(1)})
    with pytest.raises(PrivacyError, match=message):
        check_sum_keys({"b": changed}, {"a": keys(1)})


def test_the_view_is_of_all_keys_and_members():
    shown = {"a": keys(1), "b": keys(2)}
    assert view(shown, ["a", "b"]) == view(dict(reversed(shown.items())), ["a", "b"])
    assert len({view(shown, ["a", "b"]), view(shown, ["a"]), view({**shown, "b": keys(3)}, ["a", "b"])}) == 3


def test_a_pair_has_one_mask_and_each_pair_and_site_another():
    private = {site: X25519PrivateKey.generate() for site in "abc"}
    shown = {
        site: Keys(bytes(32), key.public_key().public_bytes_raw(), bytes(32)) for site, key in private.items()
    }
    pair = pair_mask(private["a"], shown["b"], "a", "b")
    assert pair == pair_mask(private["b"], shown["a"], "b", "a")
    assert pair != pair_mask(private["a"], shown["c"], "a", "c")
    assert own_mask(bytes(32)) != own_mask(b"\x01" * 32)
