"""What the key exchanges of a secure sum and of CKKS share: contents, relayed messages and agreed keys."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medfed.errors import PrivacyError, WireError
from medfed.wire.messages import SiteChannel


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a message."""


class RelayedMessages(Content, frozen=True):
    """Sites' signed messages, which the hub forwards unchanged, by site."""

    messages: dict[str, bytes] = msgspec.field(name="letters")


class EncryptedBySite(Content, frozen=True):
    """What a site encrypted for others, by receiver."""

    by_site: dict[str, bytes]


C = TypeVar("C", bound=Content)


def to_bytes(content: Content) -> bytes:
    """Return the content of a message as bytes."""
    return msgspec.json.encode(content)


def parse(data: bytes, kind: type[C], party: str, step: str) -> C:
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


def require_signatures(channel: SiteChannel, kind: str, danger: str) -> None:
    """Check that the exchange signs messages.

    Raises:
        PrivacyError: if it does not, saying what whoever carries the messages could do.
    """
    if not channel.signed:
        raise PrivacyError(
            f"site '{channel.site}': privacy.kind: {kind} needs messages with signatures, else whoever "
            f"carries them can {danger}; set exchange.credentials (`medfed enrol` makes them)"
        )


def open_relayed(
    channel: SiteChannel, sealed: bytes, kind: type[C], party: str, step: str, attempt: int
) -> C:
    """Return the content of a site's message that the hub forwarded.

    Raises:
        PrivacyError: if that site did not write it, or wrote it in another step.
        WireError: if it is not of this kind.
    """
    who = f"site '{channel.site}', round {channel.round}"
    try:
        message = channel.open(sealed, party)
    except WireError as error:
        raise PrivacyError(
            f"{who}: the hub forwards a message in the name of '{party}' that is not from it: {error}; "
            "nothing more is sent"
        ) from None
    if (message.step, message.when) != (step, (channel.round, attempt)):
        raise PrivacyError(
            f"{who}: the hub forwards a message of '{party}' of round {message.round}, attempt "
            f"{message.attempt}, step '{message.step[:20]}', expected round {channel.round}, attempt "
            f"{attempt}, '{step}': a copy of an older one"
        )
    return parse(message.data, kind, party, step)


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
    return HKDF(SHA256(), 32, salt=None, info=f"medfed-1 {purpose}".encode()).derive(secret)
