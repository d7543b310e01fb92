"""Where site and hub meet: a place that holds small named pieces of bytes. `folder` and `nats`
are two such places.

What is said there, and what is believed, is `_meeting.py`'s, the same for every store. To build another
exchange across machines, write a store and let `_meeting` speak over it.

Names are paths: up/<study>/<site>/... is written by that site alone, glob/<study>/... by the hub alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from medfed.errors import ExchangeError


class Unreachable(ExchangeError):
    """The place cannot be reached, or has no room, at the moment; the same call may succeed later."""


class MissingObject(ExchangeError):
    """A piece that a manifest names is not there."""


Buffer = bytes | memoryview
# One piece in the parts of memory that it lies in, in order.
Parts = Sequence[Buffer]


class ObjectStore(Protocol):
    """Small named pieces of bytes, readable by the other side. Every call may be repeated.

    Any call may raise `Unreachable`, after which it may be repeated.
    """

    # How large a chunk may be here, and how often a site says that it is there.
    chunk_bytes: int
    heartbeat_s: float
    # By which way a message goes there, in words for the audit log; no host and no path.
    channel: str

    def put(self, name: str, data: Buffer, once: bool = False) -> None:
        """Store a piece, whole or not at all; with `once` a piece that is already there stays as it is."""
        ...

    def get(self, name: str) -> bytes | None:
        """Return a piece, or None if there is none."""
        ...

    def put_many(self, pieces: Iterable[tuple[str, Parts]], stored: Callable[[str], None]) -> None:
        """Store pieces, several at a time, calling `stored` with the name of each one that is safe."""
        ...

    def get_many(self, names: Sequence[str], take: Callable[[str, Buffer], None], skip: bool = False) -> None:
        """Hand each piece to `take`, several at a time, in any order; after `take` its memory
        may be used again.

        With `skip` those that are not there are left out.

        Raises:
            MissingObject: if one is not there.
        """
        ...

    def delete_rounds(self, study: str, before: int) -> None:
        """Remove the study's global models of rounds below `before` and the updates for
        rounds up to `before`.
        """
        ...

    def delete_study(self, study: str) -> None:
        """Remove every model and update of a study, and the manifest of its newest model."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return when something may have changed, at the latest after a while that the store thinks right."""
        ...

    def close(self) -> None:
        """Let go of connections and files; nothing that is stored is lost."""
        ...


def update_prefix(study: str, site: str, round: int) -> str:
    """Return where a site's update for a round lies."""
    return f"up/{study[:16] or 'none'}/{site}/r{round:05d}"


def global_prefix(study: str, round: int) -> str:
    """Return where the chunks of a round's global model lie."""
    return f"glob/{study[:16] or 'none'}/r{round:05d}"


def site_control_name(study: str, site: str, what: str) -> str:
    """Return where a site's notice lies."""
    return f"up/{study[:16] or 'none'}/{site}/{what}/m"


def hub_control_name(study: str, what: str) -> str:
    """Return where a notice of the hub lies, or (`now`) the manifest of its newest model."""
    return f"glob/{study[:16] or 'none'}/{what}/m"


def manifest_name(prefix: str) -> str:
    """Return the name of the manifest of what lies under a prefix."""
    return f"{prefix}/m"


def chunk_name(prefix: str, index: int, digest: str) -> str:
    """Return the name of a chunk: its content's own digest is in it, so that what is there need
    not be sent again.
    """
    return f"{prefix}/c/{index}-{digest[:32]}"
