"""The messages of a secure sum, the graph of neighbours, and key derivation.

Each record is the content of a message (`medfed/wire/messages.py`), which carries study, run, round, attempt,
step and the sender's signature. The steps, in order: call, keys, shares, members, signed, unmask.
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
    """A study's settings of its secure sum; `secure_sum.py` explains each."""

    threshold: float
    least: int
    bits: Bits
    limit: float
    most_examples: int
    neighbours: int
    patience_s: float

    def fixed_point(self, terms: int) -> FixedPoint:
        """Return the fixed-point encoding for a sum of up to this many sites."""
        return FixedPoint(self.bits, self.limit, terms)

    def whole_numbers(self, terms: int) -> FixedPoint:
        """Return the encoding of example counts, with a step of 1."""
        return FixedPoint(self.bits, self.most_examples, terms, steps=1.0)

    def required(self, of: int) -> int:
        """Return how many sites must remain of those that began."""
        return max(self.least, required_sites(self.threshold, of))

    def require(self, who: str, did: str, count: int, of: int) -> None:
        """Check that enough sites remain of those that began.

        Raises:
            PrivacyError: if not, saying how many there are and how many are needed.
        """
        if count < self.required(of):
            raise PrivacyError(
                f"{who}: {count} of {of} sites {did}, {self.required(of)} are needed (privacy.threshold, "
                "privacy.least): a sum of fewer would reveal too much of each; nothing more is sent"
            )


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Keys(_Content, frozen=True):
    """keys, site to hub: public keys for this attempt, and the digest of the own mask's seed."""

    box: bytes
    mask: bytes
    seed: bytes


class ForwardedKeys(_Content, frozen=True):
    """keys, hub to sites: the sites' signed key messages, unchanged, by site."""

    messages: dict[str, bytes] = msgspec.field(name="letters")


class SealedShares(_Content, frozen=True):
    """shares, site to hub: encrypted shares that only their receiver can read, by receiver."""

    boxes: dict[str, bytes]


class DeliveredShares(_Content, frozen=True):
    """shares, hub to site: the sites that distributed shares, and the shares for this site, by sender."""

    members: list[str]
    boxes: dict[str, bytes]


class Members(_Content, frozen=True):
    """members, hub to sites, and signed, site to hub: the sites whose updates the hub holds, sorted."""

    sites: list[str]


class UnmaskRequest(_Content, frozen=True):
    """signed, hub to sites: the signed lists, and whose shares of which kind the hub requests."""

    messages: dict[str, bytes] = msgspec.field(name="letters")
    seeds_of: list[str]
    keys_of: list[str]


class Shares(_Content, frozen=True):
    """unmask, site to hub: shares of seeds of sites in the sum, and of mask keys of those that left."""

    seeds: dict[str, bytes]
    keys: dict[str, bytes]


_T = TypeVar("_T", bound=_Content)


def parse(data: bytes, kind: type[_T], party: str, step: str) -> _T:
    """Return the content of a message.

    Raises:
        WireError: if it is not of this kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WireError(
            f"the message of '{party}' for step '{step}' cannot be decoded: {str(error)[:200]}"
        ) from None


def to_bytes(content: _Content) -> bytes:
    """Return the content of a message as bytes."""
    return msgspec.json.encode(content)


def neighbours(keys: Mapping[str, Keys], most: int) -> dict[str, list[str]]:
    """Return each site's neighbours, with whom it shares masks and secrets: all, or a ring of degree `most`.

    Bell, Bonawitz, Gascón, Lepoint, Raykova: Secure Single-Server Aggregation with (Poly)Logarithmic
    Overhead, CCS 2020, eprint 2020/704: a Harary graph over a random order. The order here is derived
    from the digest of all sites' keys of this attempt, so that everyone can compute it, but only after all
    keys are known.
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
    """Return who holds shares of a site's secrets, its neighbours and itself, in the order of the shares."""
    return sorted([site, *others])


def required_sites(threshold: float, sites: int) -> int:
    """Return how many of so many sites must remain; never one alone, whose sum would be its update."""
    return max(2, math.ceil(threshold * sites - 1e-9))


def checked_keys(keys: Mapping[str, Keys]) -> Mapping[str, Keys]:
    """Return the keys, having checked that they belong to different sites.

    Raises:
        PrivacyError: if one has a wrong length, or two sites have the same.
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
        PrivacyError: if the other key has small order and would give everyone the same secret.
    """
    try:
        shared = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise PrivacyError("a site's public key is not a usable X25519 key (it has small order)") from None
    return derived(shared, purpose)


def derived(secret: bytes, purpose: str) -> bytes:
    """Return 32 bytes that a secret gives for a purpose, by HKDF with SHA-256."""
    return HKDF(SHA256(), 32, salt=None, info=f"medfed-1 secure sum {purpose}".encode()).derive(secret)


def pair(one: str, two: str) -> str:
    """Return how two sites together are called, the same from either's side."""
    return "/".join(sorted((one, two)))
