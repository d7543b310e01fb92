"""That a published ciphertext is the sum of what hospitals encrypted, checked by each before it decrypts.

The hub adds ciphertexts and could publish one hospital's alone as the sum, or a sum in which it counts a
hundredfold. So each site sends with its update a tag: a secret linear combination of its ciphertexts, sum of
r_j c_j, encrypted for the other sites. r_j are 40 random bits that the study's key gives for the round and
that the hub does not have. The combination is linear modulo the ring's modulus, as the hub's addition is: the
combination of the published ciphertexts equals the sum of the tags if they are the sum of these hospitals'
ciphertexts, and for anything else with probability 2^-40. A linear message authentication code (Carter,
Wegman, STOC 1977; Agrawal, Boneh: Homomorphic MACs, ACNS 2009). Cost per ciphertext of 2048 numbers: 20
additions; for 400,000 numbers encryption takes 0.24 s of a processor instead of 0.17, decryption 0.14 s
instead of 0.07. Per site 62 kB more to send, and the tags of all sites to receive.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from medfed.errors import DECODING_ERRORS, PrivacyError
from medfed.privacy._key_exchange import derived

# The random bits of a coefficient, and with them the probability that another ciphertext passes.
BITS = 40

# Its nonce and the tag's overhead: AES-GCM with a nonce drawn for each tag.
NONCE_BYTES = 12


class Tag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a site encrypts for the others: whose update it is, and the combination of its ciphertexts.

    `update` is `update_digest` of what it was made from.
    """

    site: str
    round: int
    examples: int
    combined: bytes
    update: bytes = b""


def update_digest(examples: int, parts: Iterable[bytes]) -> bytes:
    """Return the SHA-256 of a site's ciphertexts and number of examples.

    The hub publishes it for each site whose update it merged. A tag that was made from anything else, such as
    a damaged update's, is so known by its site, which the linear check of the sum alone cannot tell.
    """
    sha = hashlib.sha256(f"{examples}\n".encode())
    for part in parts:
        sha.update(hashlib.sha256(part).digest())
    return sha.digest()


def seal_tag(key: bytes, tag: Tag) -> bytes:
    """Return a tag encrypted under the study's key."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + _cipher(key, tag.round).encrypt(nonce, msgspec.msgpack.encode(tag), None)


def open_tags(key: bytes, sealed: Mapping[str, bytes], round: int) -> list[Tag]:
    """Return the tags of a round by the sites to whose names the hub gives them.

    Raises:
        PrivacyError: naming the site whose tag is not its own, or not of this round.
    """
    tags = []
    for site, data in sorted(sealed.items()):
        try:
            text = _cipher(key, round).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], None)
            tag = msgspec.msgpack.decode(text, type=Tag)
        except (InvalidTag, ValueError, *DECODING_ERRORS):
            raise PrivacyError(_no_tag(site, round)) from None
        if (tag.site, tag.round) != (site, round) or tag.examples < 1:
            raise PrivacyError(_no_tag(site, round))
        tags.append(tag)
    return tags


def _no_tag(site: str, round: int) -> str:
    return f"what stands for site '{site}' in the merged model is no tag that it made for round {round}"


def combine(ts: Any, context: Any, key: bytes, round: int, parts: Sequence[bytes]) -> bytes:
    """Return the sum of r_j times ciphertext j.

    Bit by bit, because TenSEAL multiplies only by numbers that it scales: plane b is the sum of the
    ciphertexts whose r_j has bit b, and the result is the sum of 2^b times plane b.
    """
    planes: dict[int, Any] = {}
    added: set[int] = set()  # the planes that are sums: another one is still a ciphertext that others share
    for part, factor in zip(parts, _factors(key, round, len(parts)), strict=True):
        vector = ts.ckks_vector_from(context, part)
        for bit in range(BITS):
            if not factor >> bit & 1:
                continue
            if bit in added:
                planes[bit].add_(vector)
            elif bit in planes:
                planes[bit] = planes[bit] + vector
                added.add(bit)
            else:
                planes[bit] = vector
    return _weighted(planes)


def _weighted(planes: Mapping[int, Any]) -> bytes:
    top = max(planes)
    total = planes[top]
    for bit in reversed(range(top)):
        total = total.add_(total) if bit < top - 1 else total + total  # the first sum is its own copy
        if bit in planes:
            total.add_(planes[bit])
    return bytes(total.serialize())


def added(ts: Any, context: Any, tags: Sequence[Tag]) -> bytes:
    """Return the sum of the tags' combinations.

    Raises:
        PrivacyError: naming a site whose tag does not hold a ciphertext of the form of the first one's.
    """
    total = None
    for tag in tags:
        try:
            vector = ts.ckks_vector_from(context, tag.combined)
            total = vector if total is None else total + vector
        except (ValueError, RuntimeError, IndexError):
            raise PrivacyError(f"site '{tag.site}': its tag does not fit the model") from None
    assert total is not None
    return bytes(total.serialize())


def _factors(key: bytes, round: int, count: int) -> list[int]:
    """Return the round's secret coefficients, which all sites derive alike and the hub cannot; none is 0."""
    width = BITS // 8
    stream = Cipher(AES(derived(key, f"ckks combination {round}")), CTR(bytes(16))).encryptor()
    data = stream.update(bytes(width * count))
    return [int.from_bytes(data[at : at + width], "little") or 1 for at in range(0, len(data), width)]


def _cipher(key: bytes, round: int) -> AESGCM:
    return AESGCM(derived(key, f"ckks tag {round}"))
