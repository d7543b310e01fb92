"""What is said about bytes that travel in chunks: whose, for what round of what study, and the
digest of every chunk.

The manifest is written after its chunks and is sealed by whoever sends; a chunk counts only with the digest
that the manifest names. So what is half there does not exist yet, and what was changed on the way is noticed.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from medfed.errors import ExchangeError, WireError
from medfed.wire.signing import BROKER, HUB, Seal

# The version of this protocol; parties refuse any other.
PROTOCOL = "medfed-exchange-1"

_HEX64 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="manifest"):
    """An update or a global model: its place in the study, its size and its chunks' SHA-256, in order."""

    protocol: str
    what: Literal["update", "global"]
    study: str
    run: str
    party: str
    round: int
    bytes: int
    chunk_bytes: int
    chunks: list[str]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Each chunk's first byte and length."""
        return [
            (first, min(self.chunk_bytes, self.bytes - first))
            for first in range(0, self.bytes, self.chunk_bytes)
        ]


class ControlMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="notice"):
    """A short word of one party: it is here, it stops, the study is closed, this is the study."""

    protocol: str
    what: Literal["here", "withdrawn", "state", "study"]
    study: str
    party: str
    text: str = ""
    session: str = ""
    count: int = 0


def party_name(name: str) -> str:
    """Return a site's name if it can be a part of a path and of a subject.

    Raises:
        ExchangeError: saying what is allowed.
    """
    if not _NAME.fullmatch(name) or name in (HUB, BROKER):
        raise ExchangeError(
            f"site '{name[:80]}': across machines a site's name is 1 to 64 letters, digits, '-' or '_', and not 'hub' or "
            f"'broker'"
        )
    return name


def encode_sealed(said: Manifest | ControlMessage, seal: Seal) -> bytes:
    """Return a manifest or notice, sealed."""
    return seal.seal(msgspec.json.encode(said))


def manifest(data: bytes, seal: Seal, party: str, what: str, study: str) -> Manifest:
    """Return the manifest that a party sealed.

    Raises:
        WireError: if it is not that party's, not of this study, not of this kind, or contradicts itself.
    """
    found = _opened(data, seal, party, study)
    if not isinstance(found, Manifest) or found.what != what:
        raise WireError(f"expected the manifest of an {what}, found something else")
    count = -(-found.bytes // found.chunk_bytes) if found.chunk_bytes > 0 else -1
    if found.bytes < 1 or found.round < 0 or count != len(found.chunks):
        raise WireError(
            f"its manifest contradicts itself: round {found.round}, {found.bytes} bytes in {len(found.chunks)} chunks of "
            f"{found.chunk_bytes}"
        )
    if not all(_HEX64.fullmatch(chunk) for chunk in found.chunks):
        raise WireError("its manifest names a chunk by something that is not a SHA-256")
    return found


def notice(data: bytes, seal: Seal, party: str, what: str, study: str | None) -> ControlMessage:
    """Return the notice that a party sealed, of any study if that is None.

    Raises:
        WireError: as for a manifest.
    """
    found = _opened(data, seal, party, study)
    if not isinstance(found, ControlMessage) or found.what != what:
        raise WireError(f"expected the notice '{what}', found something else")
    return found


def _opened(data: bytes, seal: Seal, party: str, study: str | None) -> Manifest | ControlMessage:
    text = seal.open(data, party)
    try:
        found: Manifest | ControlMessage = msgspec.json.decode(text, type=Manifest | ControlMessage)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WireError(f"its manifest does not read: {error}") from None
    if found.protocol != PROTOCOL:
        raise WireError(f"it speaks '{found.protocol[:30]}', this medfed '{PROTOCOL}'; update the older side")
    if found.party != party:
        raise WireError(f"its manifest is of '{found.party[:80]}', expected '{party}'")
    if study is not None and found.study != study:
        raise WireError(
            f"it belongs to study {found.study[:12] or '(none)'}, this is study {study[:12] or '(none)'}; both sides must "
            f"run the same study file"
        )
    return found
