"""The interface of an object store through which site and hub exchange named objects.

What is stored under which name, and what a reader accepts, is the same for every store (`_protocol.py`,
`_study_store.py`). To build another exchange across machines, write an object store and open `HubTransport`
and `SiteTransport` on it.

Names are paths: only a site writes below up/<study>/<site>/, only the hub below glob/<study>/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from medfed.errors import ExchangeError, ForgedError


class Unreachable(ExchangeError):
    """The store cannot be reached or is full at the moment; the same call may succeed later."""


class Refused(Unreachable):
    """The store, or whoever runs it, does not let this party in, or does not take what it sends."""


class MissingObject(ExchangeError):
    """An object that a manifest names does not exist."""


class UnsafeObject(ForgedError):
    """What is stored under a name is not opened: it is too large, or no file of its own."""


Buffer = bytes | memoryview
# One object as a sequence of buffers, in order; they are never joined in memory without need.
Parts = Sequence[Buffer]


@runtime_checkable
class LimitsSites(Protocol):
    """A store that bounds what each site may keep in it."""

    def limit_sites(self, max_bytes: int) -> tuple[str, ...]:
        """Let each site store at most so many bytes; delete what sites left that are no longer enrolled.

        Returns a sentence for each such site.
        """

    def used_bytes(self) -> dict[str, int]:
        """Return how many bytes each site has in the store."""


@runtime_checkable
class AdmitsSites(Protocol):
    """A store at which each site has rights of its own, for each study."""

    def admit(self, sites: Iterable[str]) -> None:
        """Let these sites, and no others, read and write the store's study."""


class ObjectStore(Protocol):
    """Small named objects that the other side can read.

    Any call may raise `Unreachable`, and every call may be repeated.
    """

    # The size of a chunk, and the interval of a site's heartbeats.
    chunk_bytes: int
    heartbeat_s: float
    # How long after an object arrived others that were stored before it may still arrive, or arrive whole: a
    # share that several machines synchronise keeps no order. 0 where what is stored is there for everyone.
    settle_s: float
    # The channel in words for the audit log, such as "over NATS"; without hosts and paths.
    description: str

    def put(self, name: str, data: Buffer, if_absent: bool = False) -> None:
        """Store an object atomically; with `if_absent` an existing object stays unchanged."""

    def get(self, name: str) -> bytes | None:
        """Return an object, or None if there is none.

        Raises:
            UnsafeObject: if what is there may not be opened.
        """

    def put_many(self, objects: Iterable[tuple[str, Parts]], on_stored: Callable[[str], None]) -> None:
        """Store objects, several at a time, and call `on_stored` with the name of each one that is safe."""

    def get_many(
        self, names: Sequence[str], on_object: Callable[[str, Buffer], None], skip_missing: bool = False
    ) -> None:
        """Pass each object to `on_object`, several at a time and in any order.

        The buffer may be reused once `on_object` has returned. With `skip_missing`, objects that do
        not exist are skipped.

        Raises:
            MissingObject: if one does not exist.
        """

    def delete_rounds(self, study_digest: str, before: int, updates: bool = True) -> None:
        """Delete the global models of rounds below `before` and the `updates` for rounds up to `before`."""

    def delete_update(self, prefix: str) -> None:
        """Delete the update under a prefix, if there is one."""

    def delete_study(self, study_digest: str) -> None:
        """Delete every model and update of a study, and the manifest of its newest model."""

    def wait(self, timeout_s: float) -> None:
        """Return when something may have changed, or after `timeout_s` or a shorter time of its own."""

    def close(self) -> None:
        """Release connections and files; stored objects remain."""


def manifest_name(prefix: str) -> str:
    """Return the name of the manifest for the chunks under a prefix."""
    return f"{prefix}/m"


def chunk_name(prefix: str, index: int, digest: str) -> str:
    """Return the name of a chunk, which contains its digest, so that a stored chunk is never sent again."""
    return f"{prefix}/c/{index}-{digest[:32]}"


def pass_on(
    on_object: Callable[[str, Buffer], None], skip_missing: bool
) -> Callable[[str, bytes | None], None]:
    """Return what a store's `get_many` does with each object that it got, or None."""

    def on_done(name: str, data: bytes | None) -> None:
        if data is not None:
            on_object(name, data)
        elif not skip_missing:
            raise MissingObject(f"chunk {name.rpartition('/')[2].partition('-')[0]} is not in the store")

    return on_done
