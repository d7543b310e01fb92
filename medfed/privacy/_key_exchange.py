"""What the key exchanges of a secure sum and of CKKS share: contents, parties, and agreed keys.

Whoever may be a party is decided here and in `SiteChannel.open`, for every mechanism alike: a site opens
messages only of hospitals that train in the study to which it agreed, sealed by a certificate whose role is
`site`, in this study, run and round, which train from the same model. `party_keys` then checks them
together: at least `min_sites` of them, this site among them with its own keys, and no key shown twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medfed.errors import DECODING_ERRORS, PrivacyError, WireError
from medfed.wire.messages import SiteChannel

KEY_BYTES = 32


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a message."""


class RelayedMessages(Content, frozen=True):
    """Sites' signed messages, which the hub forwards unchanged, by site."""

    messages: dict[str, bytes] = msgspec.field(name="letters")


class EncryptedBySite(Content, frozen=True):
    """What a site encrypted for others, by receiver."""

    by_site: dict[str, bytes]


class PublicKeys(Content, frozen=True):
    """What a site shows the others of itself before they agree on anything."""

    @property
    def x25519(self) -> tuple[bytes, ...]:
        """The public keys in it."""
        raise NotImplementedError


C = TypeVar("C", bound=Content)
K = TypeVar("K", bound=PublicKeys)


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
    except DECODING_ERRORS as error:
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
    who = channel.who
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


def party_keys(
    channel: SiteChannel, relayed: RelayedMessages, own: K, step: str, attempt: int
) -> dict[str, K]:
    """Return the public keys of all parties, which the hub forwarded, with this site's own among them.

    Raises:
        PrivacyError: if a party is no hospital of the study, or trains from another model; if they are fewer
            than `min_sites`, lack this site's own keys, or one speaks for two.
    """
    if channel.site not in channel.parties:
        raise PrivacyError(
            f"{channel.who}: it is not among the hospitals that train ({', '.join(channel.parties) or 'none'}"
            "); a script of your own gives their names with CallbackOptions(parties=...)"
        )
    keys = {
        party: open_relayed(channel, sealed, type(own), party, step, attempt)
        for party, sealed in relayed.messages.items()
    }
    if keys.get(channel.site) != own:
        raise PrivacyError(f"{channel.who}: the hub's list of keys lacks this site's own; nothing is sent")
    if len(keys) < channel.min_sites:
        raise PrivacyError(
            f"{channel.who}: {len(keys)} of {len(channel.parties)} hospitals showed keys, "
            f"{channel.min_sites} are needed (privacy.min_sites): among fewer, each would reveal too "
            "much; nothing more is sent"
        )
    check_keys(keys)
    return keys


def check_keys(keys: Mapping[str, PublicKeys], known: Mapping[str, PublicKeys] | None = None) -> None:
    """Check that public keys are usable, and that no other party showed them; `known` were checked before.

    Raises:
        PrivacyError: if one has a wrong length or small order, or is shown twice.
    """
    probe = X25519PrivateKey.generate()
    seen = {key: party for party, shown in (known or {}).items() for key in shown.x25519}
    for party, shown in sorted(keys.items()):
        for key in shown.x25519:
            if len(key) != KEY_BYTES:
                raise PrivacyError(f"site '{party}': a key of {len(key)} bytes; X25519's have {KEY_BYTES}")
            if key in seen:
                raise PrivacyError(
                    f"sites '{seen[key]}' and '{party}' show the same key: one speaks for both"
                )
            seen[key] = party
            try:
                agreed_key(probe, key, "")
            except PrivacyError as error:
                raise PrivacyError(f"site '{party}': {error}") from None


def agreed_key(mine: X25519PrivateKey, theirs: bytes, purpose: str) -> bytes:
    """Return the 32 bytes that two sites share for a purpose, by X25519 and HKDF.

    Raises:
        PrivacyError: if the other key has small order and would give everyone the same secret.
    """
    try:
        shared = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise PrivacyError("its public key is not a usable X25519 key (it has small order)") from None
    return derived(shared, purpose)


def derived(secret: bytes, purpose: str) -> bytes:
    """Return 32 bytes that a secret gives for a purpose, by HKDF with SHA-256."""
    return HKDF(SHA256(), 32, salt=None, info=f"medfed-1 {purpose}".encode()).derive(secret)
