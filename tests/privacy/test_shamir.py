"""Shamir's shares: any that are enough restore the secret, wrong ones are noticed."""

from __future__ import annotations

from itertools import combinations

import pytest

from medfed.errors import PrivacyError
from medfed.privacy import _shamir
from medfed.privacy._shamir import fits, join, split

SECRET = bytes(range(32))


def test_any_shares_that_are_enough_restore_the_secret_and_the_others_fit():
    shares = dict(enumerate(split(SECRET, 5, 3), start=1))
    assert {len(share) for share in shares.values()} == {66}
    for numbers in combinations(shares, 3):
        some = {number: shares[number] for number in numbers}
        assert join(some) == SECRET
        assert all(fits(some, number, share) for number, share in shares.items())
    assert join(shares) == SECRET


def test_shares_are_values_of_the_drawn_polynomial_by_hand(monkeypatch):
    # 7 + 2 x + 5 x^2 at 1, 2, 3, 4.
    coefficients = iter([2, 5])
    monkeypatch.setattr(_shamir.secrets, "randbelow", lambda below: next(coefficients))
    shares = split((7).to_bytes(32, "big"), 4, 3)
    assert [int.from_bytes(share, "big") for share in shares] == [14, 31, 58, 95]


def test_too_few_shares_fit_every_secret():
    # Two shares of a polynomial of degree 2: some third share makes any secret out of them.
    one, two, _ = split(SECRET, 3, 3)
    for secret in (bytes(32), b"\xff" * 32):
        third = _shamir._interpolate({0: secret, 1: one, 2: two}, 3).to_bytes(66, "big")
        assert join({1: one, 2: two, 3: third}) == secret


def test_a_wrong_share_is_noticed():
    shares = dict(enumerate(split(SECRET, 4, 3), start=1))
    wrong = shares[4][:-1] + bytes([shares[4][-1] ^ 1])
    assert not fits({number: shares[number] for number in (1, 2, 3)}, 4, wrong)
    with pytest.raises(PrivacyError, match="3 shares are inconsistent: at least one of them is wrong"):
        # The secret that they give is one of 2^521 numbers, of which 2^256 have 32 bytes.
        join({1: shares[1], 2: shares[2], 4: wrong})


@pytest.mark.parametrize("secret, holders, needed", [(bytes(31), 3, 2), (SECRET, 3, 4), (SECRET, 3, 0)])
def test_shares_that_could_not_restore_it_are_not_made(secret, holders, needed):
    with pytest.raises(ValueError, match=rf"{len(secret)} bytes in {holders} shares, {needed} needed"):
        split(secret, holders, needed)
