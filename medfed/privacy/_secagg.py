"""The messages of a secure sum, the graph of neighbours, and the masks of pairs.

Each record is the content of a message (`medfed/wire/messages.py`), which carries study, run, round, attempt,
step and the sender's signature. The steps, in order: call, keys, shares, members, signed, unmask.

    keys     site to hub: `Keys`              hub to sites: `RelayedMessages`, the sites' own
    shares   site to hub: `EncryptedBySite`, each with shares that only its receiver can read
                                              hub to site: `DeliveredShares`
    members  hub to sites: `Members`
    signed   site to hub: `SignedMembers`     hub to sites: `UnmaskRequest`
    unmask   site to hub: `Shares`
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medfed.errors import PrivacyError
from medfed.privacy._key_exchange import Content, PublicKeys, RelayedMessages, agreed_key, check_keys, derived
from medfed.privacy._masks import Bits, FixedPoint

# The group and name under which a masked update carries the site's masked number of examples.
GROUP, EXAMPLES = "secure_sum", "examples"


@dataclass(frozen=True)
class Settings:
    """A study's settings of its secure sum; `secure_sum.py` explains each."""

    threshold: float
    min_sites: int
    bits: Bits
    limit: float
    max_examples: int
    neighbours: int
    patience_s: float
    colluding: int

    def fixed_point(self, terms: int) -> FixedPoint:
        """Return the fixed-point encoding for a sum of up to this many sites."""
        return FixedPoint(self.bits, self.limit, terms)

    def whole_numbers(self, terms: int) -> FixedPoint:
        """Return the encoding of example counts, with a step of 1."""
        return FixedPoint(self.bits, self.max_examples, terms, steps=1.0)

    def required(self, of: int) -> int:
        """Return how many sites must remain of those that began."""
        return max(self.min_sites, required_sites(self.threshold, of, self.colluding))

    def required_shares(self, sites: int) -> int:
        """Return how many shares restore a secret when so many sites began.

        Among neighbours only, a hub could also call a whole stretch of the ring dropped out, to cut an arc
        off and have its sum. The last site of that arc then keeps at most one side of its neighbours, itself
        and what colludes: one share more than those, and the arc can never be unmasked.
        """
        reach = self.neighbours // 2
        if sites - 1 <= self.neighbours:
            return required_sites(self.threshold, sites, self.colluding)
        return max(
            required_sites(self.threshold, 2 * reach + 1, self.colluding), reach + 1 + self.colluding + 1
        )

    def require(self, who: str, did: str, count: int, of: int) -> None:
        """Check that enough sites remain of those that began.

        Raises:
            PrivacyError: if not, saying how many there are and how many are needed.
        """
        if count < self.required(of):
            raise PrivacyError(
                f"{who}: {count} of {of} sites {did}, {self.required(of)} are needed (privacy.threshold, "
                "privacy.min_sites): a sum of fewer would reveal too much of each; nothing more is sent"
            )


class Keys(PublicKeys, frozen=True):
    """A site's public keys for this attempt, and the digest of its own mask's seed."""

    box: bytes
    mask: bytes
    seed: bytes

    @property
    def x25519(self) -> tuple[bytes, ...]:
        return self.box, self.mask


class DeliveredShares(Content, frozen=True):
    """The sites that distributed shares, and the shares for this site, by sender."""

    members: list[str]
    by_site: dict[str, bytes]


class Members(Content, frozen=True):
    """The sites whose updates the hub holds, sorted."""

    sites: list[str]


class SignedMembers(Members, frozen=True):
    """The same as a site signs it, with the digest of everything that it was shown before (`view`)."""

    view: bytes


class UnmaskRequest(RelayedMessages, frozen=True):
    """The signed lists, and whose shares of which kind the hub requests."""

    seeds_of: list[str]
    keys_of: list[str]


class Shares(Content, frozen=True):
    """Shares of seeds of sites in the sum, and of mask keys of those that left."""

    seeds: dict[str, bytes]
    keys: dict[str, bytes]


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


def required_sites(threshold: float, sites: int, colluding: int) -> int:
    """Return how many of so many sites must remain: the study's share, and t with colluding < 2t - sites.

    Two lists of who is in the sum, each signed by t sites, have 2t signatures. Every honest site signs one,
    a colluding one both, so there are at most sites + colluding: fewer than 2t. So there is one list, every
    honest site gives one kind of share of each other site, and nobody's update can be unmasked alone
    (Bonawitz 2017, the consistency check; with none colluding it is their floor(n / 2) + 1, with a third
    floor(2n / 3) + 1). Never one site alone, whose sum would be its update.
    """
    return max(2, math.ceil(threshold * sites - 1e-9), (sites + colluding) // 2 + 1)


def view(keys: Mapping[str, Keys], members: Sequence[str]) -> bytes:
    """Return the digest of what a site was shown: all public keys, and who distributed shares."""
    shown = [(site, keys[site].box, keys[site].mask, keys[site].seed) for site in sorted(keys)]
    return hashlib.sha256(msgspec.json.encode((shown, list(members)))).digest()


def check_sum_keys(keys: Mapping[str, Keys], known: Mapping[str, Keys] | None = None) -> None:
    """Check the keys of a sum, and the digests of the seeds; `known` were checked before.

    Raises:
        PrivacyError: as `check_keys`, or if a digest has a wrong length.
    """
    check_keys(keys, known)
    for site, shown in sorted(keys.items()):
        if len(shown.seed) != hashlib.sha256().digest_size:
            raise PrivacyError(f"site '{site}': a digest of {len(shown.seed)} bytes; SHA-256's have 32")


def own_mask(seed: bytes) -> bytes:
    """Return the key of a site's own mask."""
    return derived(seed, "secure sum own mask")


def pair_mask(key: X25519PrivateKey, theirs: Keys, one: str, two: str) -> bytes:
    """Return the key of the mask that two sites share, from the private key of one and the other's keys."""
    return agreed_key(key, theirs.mask, f"secure sum mask {'/'.join(sorted((one, two)))}")
