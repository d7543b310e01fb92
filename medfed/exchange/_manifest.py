"""Signed descriptions of what travels in chunks: sender, study, round, and the digest of every chunk.

A manifest is written after its chunks and sealed by the sender; a chunk is accepted only with the digest that
the manifest names. So an incomplete upload does not exist yet, and a chunk that was changed in transit is
detected.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from medfed.errors import DECODING_ERRORS, ExchangeError, WireError
from medfed.wire.signing import BROKER, HUB, Seal

# The version of this protocol; parties refuse any other.
PROTOCOL = "medfed-exchange-3"

_HEX64 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="manifest"):
    """An update or a global model: its place in the study, its size and its chunks' SHA-256, in order.

    A global model's also carries the federation's signed list of revoked certificates. An update's also says
    for which round the same site sent one before it (0: for none), so that a hub that merges without rounds
    misses none that a synchronised share shows later.
    """

    protocol: str
    what: Literal["update", "global"]
    study: str
    run: str
    party: str
    round: int
    bytes: int
    chunk_bytes: int
    chunks: list[str]
    revoked: str = ""
    previous: int = 0

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The offset and length of each chunk."""
        return [
            (first, min(self.chunk_bytes, self.bytes - first))
            for first in range(0, self.bytes, self.chunk_bytes)
        ]


# The kinds of control messages: a site's heartbeat, that it dropped out, the study's state (open or closed),
# which is the hub's heartbeat, the text of the study, and the list of the studies that are offered to a site.
ControlKind = Literal["heartbeat", "dropped_out", "state", "study", "offers"]


class ControlMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="notice"):
    """A short message of one party about the study or itself."""

    protocol: str
    what: ControlKind
    study: str
    party: str
    text: str = ""
    session: str = ""
    count: int = 0


def validate_party_name(name: str) -> str:
    """Return a site's name if it can be part of a path and of a NATS subject.

    Raises:
        ExchangeError: saying what is allowed.
    """
    if not _NAME.fullmatch(name) or name in (HUB, BROKER):
        raise ExchangeError(
            f"site '{name[:80]}': across machines a site's name is 1 to 64 letters, digits, '-' or '_', and "
            f"not 'hub' or 'broker'"
        )
    return name


def encode_sealed(record: Manifest | ControlMessage, seal: Seal) -> bytes:
    """Return a manifest or control message as sealed bytes."""
    return seal.seal(msgspec.json.encode(record))


def open_manifest(data: bytes, seal: Seal, party: str, what: str, study_digest: str) -> Manifest:
    """Return the manifest that a party sealed.

    Raises:
        WireError: if it is from another party, of another study, of another kind, or contradicts itself.
    """
    manifest = _open(data, seal, party, study_digest)
    if not isinstance(manifest, Manifest) or manifest.what != what:
        raise WireError(f"expected the manifest of an {what}, found something else")
    count = -(-manifest.bytes // manifest.chunk_bytes) if manifest.chunk_bytes > 0 else -1
    if manifest.bytes < 1 or manifest.round < 0 or count != len(manifest.chunks):
        raise WireError(
            f"its manifest contradicts itself: round {manifest.round}, {manifest.bytes} bytes in "
            f"{len(manifest.chunks)} chunks of {manifest.chunk_bytes}"
        )
    if not 0 <= manifest.previous <= max(0, manifest.round - 1):
        raise WireError(
            f"its manifest contradicts itself: for round {manifest.round}, after one for round "
            f"{manifest.previous}"
        )
    if not all(_HEX64.fullmatch(chunk) for chunk in manifest.chunks):
        raise WireError("its manifest names a chunk by something other than a SHA-256")
    return manifest


def open_control(
    data: bytes, seal: Seal, party: str, what: ControlKind, study_digest: str | None
) -> ControlMessage:
    """Return the control message that a party sealed; `study` None accepts any study.

    Raises:
        WireError: as for a manifest.
    """
    message = _open(data, seal, party, study_digest)
    if not isinstance(message, ControlMessage) or message.what != what:
        raise WireError(f"expected the control message '{what}', found something else")
    return message


def _open(data: bytes, seal: Seal, party: str, study_digest: str | None) -> Manifest | ControlMessage:
    text = seal.open(data, party)
    try:
        record: Manifest | ControlMessage = msgspec.json.decode(text, type=Manifest | ControlMessage)
    except DECODING_ERRORS as error:
        _check_protocol(text)  # another version has other fields
        raise WireError(f"its manifest cannot be decoded: {error}") from None
    _check_protocol(text)
    if record.party != party:
        raise WireError(f"its manifest is from '{record.party[:80]}', expected '{party}'")
    if study_digest is not None and record.study != study_digest:
        raise WireError(
            f"it belongs to study {record.study[:12] or '(none)'}, this is study "
            f"{study_digest[:12] or '(none)'}; both sides must run the same study file"
        )
    return record


class _Versioned(msgspec.Struct, frozen=True):
    """What every version of this protocol states."""

    protocol: str


def _check_protocol(text: bytes) -> None:
    try:
        protocol = msgspec.json.decode(text, type=_Versioned).protocol
    except DECODING_ERRORS:
        return  # of no version
    if protocol != PROTOCOL:
        raise WireError(
            f"it uses protocol '{protocol[:30]}', this medfed uses '{PROTOCOL}'; update the older side"
        )
