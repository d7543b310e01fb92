"""Secret sharing: a stated number of shares restores a secret of 32 bytes, fewer reveal nothing.

Shamir: How to share a secret, Communications of the ACM 22(11), 1979, doi:10.1145/359168.359176. A polynomial
over the integers modulo a prime, whose value at 0 is the secret and whose other coefficients are drawn from
the operating system; share x is its value at x. Secrets are seeds and private keys, so there are few, and
plain integers are fast enough.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from medfed.errors import PrivacyError

# A Mersenne prime, above any secret of 32 bytes.
PRIME = 2**521 - 1
SECRET_BYTES = 32
# A share's value as bytes: 521 bits.
SHARE_BYTES = 66


def split(secret: bytes, holders: int, needed: int) -> list[bytes]:
    """Return shares 1 to `holders` of a secret; any `needed` of them restore it.

    Raises:
        ValueError: if the secret does not have 32 bytes, or `needed` is not between 1 and `holders`.
    """
    if len(secret) != SECRET_BYTES or not 1 <= needed <= holders:
        raise ValueError(f"{len(secret)} bytes in {holders} shares, {needed} needed")
    line = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(needed - 1))]
    return [_evaluate(line, x).to_bytes(SHARE_BYTES, "big") for x in range(1, holders + 1)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret from its shares by their number.

    Raises:
        PrivacyError: if the shares are inconsistent, so that they yield no secret of 32 bytes.
    """
    secret = _interpolate(shares, 0)
    if secret >> (8 * SECRET_BYTES):
        raise PrivacyError(f"{len(shares)} shares are inconsistent: at least one of them is wrong")
    return secret.to_bytes(SECRET_BYTES, "big")


def fits(shares: Mapping[int, bytes], number: int, share: bytes) -> bool:
    """Return whether a further share lies on the polynomial through these."""
    return _interpolate(shares, number) == int.from_bytes(share, "big")


def _interpolate(shares: Mapping[int, bytes], at: int) -> int:
    """Return the value at `at` of the polynomial through the shares, by Lagrange's formula."""
    points = {x: int.from_bytes(share, "big") for x, share in shares.items()}
    total = 0
    for x, y in points.items():
        above, below = 1, 1
        for other in points:
            if other != x:
                above = above * (other - at) % PRIME
                below = below * (other - x) % PRIME
        total = (total + y * above * pow(below, -1, PRIME)) % PRIME
    return total


def _evaluate(line: Sequence[int], x: int) -> int:
    total = 0
    for coefficient in reversed(line):
        total = (total * x + coefficient) % PRIME
    return total
