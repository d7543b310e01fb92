"""What sites and hub write to each other in a secure sum, who is whose neighbour, and the keys
that come of it.

Each record is the content of a letter (`medfed/wire/messages.py`), which carries study, run, round, attempt,
step and the writer's signature. The steps, in order: call, keys, shares, members, signed, unmask.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medfed.errors import PrivacyError, WireError
from medfed.privacy._masks import Bits, FixedPoint


@dataclass(frozen=True)
class Settings:
    """What a study says of its secure sum; `secure_sum.py` explains each."""

    threshold: float
    least: int
    bits: Bits
    limit: float
    most_examples: int
    neighbours: int
    patience_s: float

    def fixed_point(self, terms: int) -> FixedPoint:
        """Return how numbers become integers where this many sites may be in the sum."""
        return FixedPoint(self.bits, self.limit, terms)

    def whole_numbers(self, terms: int) -> FixedPoint:
        """Return how numbers of examples become integers: as they are."""
        return FixedPoint(self.bits, self.most_examples, terms, steps=1.0)

    def required(self, of: int) -> int:
        """Return how many sites must go on where this many began."""
        return max(self.least, required_sites(self.threshold, of))

    def require(self, who: str, did: str, count: int, of: int) -> None:
        """Raise if too few sites are left of those that began.

        Raises:
            PrivacyError: saying how many there are and must be.
        """
        if count < self.required(of):
            raise PrivacyError(
                f"{who}: {count} of {of} sites {did}, {self.required(of)} are needed (privacy.threshold, privacy.least): a "
                f"sum of fewer would tell too much of each; nothing more is said"
            )


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Keys(_Content, frozen=True):
    """keys, site to hub: public keys for this attempt alone, and the digest of the seed of
    the site's own mask.
    """

    box: bytes
    mask: bytes
    seed: bytes


class ForwardedKeys(_Content, frozen=True):
    """keys, hub to sites: the sites' letters with their keys, sealed as they came, by site."""

    letters: dict[str, bytes]


class SealedShares(_Content, frozen=True):
    """shares, site to hub: boxes that only their receiver opens, by receiver."""

    boxes: dict[str, bytes]


class DeliveredShares(_Content, frozen=True):
    """shares, hub to site: the sites that handed out shares, and the boxes for this site, by sender."""

    members: list[str]
    boxes: dict[str, bytes]


class Members(_Content, frozen=True):
    """members, hub to sites, and signed, site to hub: the sites whose masked updates the hub holds, sorted."""

    sites: list[str]


class UnmaskRequest(_Content, frozen=True):
    """signed, hub to sites: the signed lists, and whose shares of which kind the hub asks for."""

    letters: dict[str, bytes]
    seeds_of: list[str]
    keys_of: list[str]


class Shares(_Content, frozen=True):
    """unmask, site to hub: shares of the seeds of sites in the sum, and of the mask keys of
    those that dropped out.
    """

    seeds: dict[str, bytes]
    keys: dict[str, bytes]


_T = TypeVar("_T", bound=_Content)


def parse(data: bytes, kind: type[_T], party: str, step: str) -> _T:
    """Return the content of a letter.

    Raises:
        WireError: if it is none of this kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WireError(
            f"the letter of '{party}' for step '{step}' does not read: {str(error)[:200]}"
        ) from None


def to_bytes(content: _Content) -> bytes:
    """Return the content of a letter as bytes."""
    return msgspec.json.encode(content)


def neighbours(keys: Mapping[str, Keys], most: int) -> dict[str, list[str]]:
    """Return who holds shares with whom and shares masks: all with all, or beyond `most` others a
    ring of that degree.

    Bell, Bonawitz, Gascón, Lepoint, Raykova: Secure Single-Server Aggregation with (Poly)Logarithmic
    Overhead, CCS 2020, eprint 2020/704: a Harary graph over a random order. The order here is drawn
    from the digest of all sites' keys of this attempt, so that it is known to everyone and to nobody
    before the keys are.
    """
    sites = sorted(keys)
    if len(sites) - 1 <= most:
        return {site: [other for other in sites if other != site] for site in sites}
    drawn = hashlib.sha256(b"".join(keys[site].box + keys[site].mask for site in sites)).digest()
    ring = sorted(sites, key=lambda site: hashlib.sha256(drawn + site.encode()).digest())
    reach = [step for step in range(-(most // 2), most // 2 + 1) if step != 0]
    return {
        site: sorted(ring[(place + step) % len(ring)] for step in reach) for place, site in enumerate(ring)
    }


def holders(site: str, others: Sequence[str]) -> list[str]:
    """Return who holds shares of a site's secrets, in the order of the shares' numbers:
    its neighbours and itself.
    """
    return sorted([site, *others])


def required_sites(threshold: float, sites: int) -> int:
    """Return how many of this many sites must go on: never one alone, whose sum would be its update."""
    return max(2, math.ceil(threshold * sites - 1e-9))


def checked_keys(keys: Mapping[str, Keys]) -> Mapping[str, Keys]:
    """Return the keys if they can be those of different sites.

    Raises:
        PrivacyError: if one has another length, or two sites have the same.
    """
    seen: dict[bytes, str] = {}
    for site, found in sorted(keys.items()):
        for key in (found.box, found.mask):
            if len(key) != 32 or len(found.seed) != 32:
                raise PrivacyError(f"site '{site}': a key of {len(key)} bytes; X25519's have 32")
            if key in seen:
                raise PrivacyError(f"sites '{seen[key]}' and '{site}' show the same key: one speaks for both")
            seen[key] = site
    return keys


def agreed_key(mine: X25519PrivateKey, theirs: bytes, purpose: str) -> bytes:
    """Return the 32 bytes that two sites share for a purpose, by X25519 and HKDF.

    Raises:
        PrivacyError: if the other key is one that gives everyone the same secret.
    """
    try:
        shared = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise PrivacyError("a public key of a site is no key of X25519 that hides anything") from None
    return derived(shared, purpose)


def derived(secret: bytes, purpose: str) -> bytes:
    """Return 32 bytes that a secret gives for a purpose, by HKDF with SHA-256."""
    return HKDF(SHA256(), 32, salt=None, info=f"medfed-1 secure sum {purpose}".encode()).derive(secret)


def pair(one: str, two: str) -> str:
    """Return how two sites together are called, the same from either's side."""
    return "/".join(sorted((one, two)))
