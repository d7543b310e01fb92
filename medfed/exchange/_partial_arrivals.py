"""What has arrived from a site in part: on a share that is synchronised, the rest may come later."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from medfed.errors import ForgedError, WireError
from medfed.exchange._exchange import ReceivedUpdate
from medfed.exchange._object_store import MissingObject, ObjectStore
from medfed.exchange._protocol import WarnOnce


class NotWhole(Exception):
    """What a site sends is not there as a whole, at the moment or for good."""


class _Part(NamedTuple):
    """When a part was first seen (time.monotonic), why it is not whole, and its bytes."""

    first: float
    why: str
    size: int


@contextmanager
def not_whole() -> Iterator[None]:
    """Raise what shows that something did not arrive whole as `NotWhole`."""
    try:
        yield
    except ForgedError:
        raise
    except (WireError, MissingObject) as error:
        raise NotWhole(str(error)) from None


class PartialArrivals:
    """What of each site's, for a round and by kind, has arrived in part."""

    def __init__(self, store: ObjectStore, warn: WarnOnce) -> None:
        self._settle_s, self._warn = store.settle_s, warn
        self._parts: dict[tuple[str, int, str], _Part] = {}

    def may_still_arrive(self, what: tuple[str, int, str], why: str, size: int = 0) -> bool:
        """Return whether what is not there, or not whole, may still be; the deadline ends the wait, too."""
        site, round, kind = what
        first = self._parts[what].first if what in self._parts else time.monotonic()
        self._parts[what] = _Part(first, why, size)
        if time.monotonic() - first >= self._settle_s:
            return False
        self._warn(f"site '{site}', round {round}: its {kind} is not whole yet ({why}); waiting for the rest")
        return True

    def not_whole_by_now(self, round: int, sites: Sequence[str]) -> Iterator[ReceivedUpdate]:
        """Yield the refusals of these sites' updates that have arrived in part when the deadline passes."""
        for site in sites:
            if (part := self._parts.get((site, round, "update"))) is not None:
                why = f"site '{site}', round {round}: by the deadline it was not whole: {part.why}"
                yield ReceivedUpdate(site, None, WireError(why), part.size)
