"""The two sides of an exchange, and what the hub receives; the record that opens them is in `_record.py`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from medfed.errors import MedfedError, UpdateError
from medfed.exchange._drop_out import DropOut
from medfed.wire.messages import HubMessaging, SiteMessaging
from medfed.wire.update import GlobalModel, Update


@dataclass(frozen=True)
class ReceivedUpdate:
    """One site's result in one round: its update, or the error that replaces it."""

    site: str
    update: Update | None
    error: MedfedError | None = None
    bytes_up: int = 0
    seconds: float = 0.0


def early_update(site: str, round: int, sent_for: int, bytes_up: int) -> ReceivedUpdate:
    """Return the refusal of an update that a site sent for a later round than the one that is collected."""
    why = UpdateError(
        f"site '{site}', round {round}: it has already sent an update for round {sent_for} of this run, "
        "which has not begun. Either it sent that too early, or the hub's run folder is a back-up that is "
        "older than its sites, which accept no older model: then stop the hub and restore the newest copy "
        "of the run folder, or start a new run (--out)"
    )
    return ReceivedUpdate(site, None, why, bytes_up)


@dataclass(frozen=True)
class Transmission:
    """What `send` puts on the wire, for the audit log: recipient and channel, size in bytes, and SHA-256.

    For an update that travels in chunks, this is the SHA-256 of the chunks' SHA-256 (in hex, concatenated),
    as the signed manifest lists them, so that each byte is hashed only once.
    """

    to: str
    bytes: int
    sha256: str
    # The names of the numbers in it, where an exchange sends fewer than the update holds.
    scalars: tuple[str, ...] | None = None


class SiteSide(SiteMessaging, Protocol):
    """A site's side of an exchange. Every method is idempotent: repeating a call changes nothing."""

    def fetch(self, site: str, round: int) -> GlobalModel:
        """Return the newest global model of at least this round, waiting until there is one.

        Raises:
            ExchangeError: if the exchange is closed or can no longer be reached.
        """

    def transmission(self, update: Update) -> Transmission:
        """Describe what `send` would put on the wire, without sending it."""

    def send(self, update: Update) -> None:
        """Deliver an update; only the first update of a site for a round counts."""

    @property
    def closed(self) -> bool:
        """Whether the study is known to have ended early.

        A site then stops at its next training step instead of its next merge.
        """

    def drop_out(self, site: str, reason: DropOut, detail: str = "") -> None:
        """Tell the hub that this site stops, in one of the fixed words.

        `detail` is never sent: only an exchange within one process, which one person runs, shows it.
        """


class HubSide(HubMessaging, Protocol):
    """The hub's side of an exchange."""

    def publish(self, model: GlobalModel, ensure_saved: Callable[[], None] = lambda: None) -> int:
        """Make a global model available to every site, durably; return its size in bytes.

        Bytes may be uploaded before `ensure_saved` returns, but no site accepts the model earlier.
        `ensure_saved` raises if the hub's own copy is not safe on disk.
        """

    def newest_published(self, after: int) -> GlobalModel | None:
        """Return the newest model of this run that was published, if its round is after that one.

        There is one where the hub's own folder is older than what it published, such as a back-up.
        """

    def collect(self, round: int, sites: Sequence[str], deadline_s: float | None) -> Iterator[ReceivedUpdate]:
        """Yield one result per site as they arrive, until all have answered or the deadline has passed.

        A site that did not answer in time yields nothing. A site that dropped out, or whose update cannot be
        decoded, yields a result with the error.
        """

    def close(self) -> None:
        """Release every waiting party; a waiting site raises ExchangeError."""


# What an asynchronous hub has merged in the beginning, by site.
NOTHING_MERGED: Mapping[str, int] = MappingProxyType({})


@runtime_checkable
class SupportsAsync(Protocol):
    """A hub side that can also collect updates without rounds, for asynchronous aggregation."""

    def collect_async(
        self,
        round: int,
        sites: Sequence[str],
        deadline_s: float | None,
        count: int,
        merged: Mapping[str, int] = NOTHING_MERGED,
    ) -> Iterator[ReceivedUpdate]:
        """Yield updates for this round or an earlier one as they arrive.

        None is yielded twice, and of each site none up to its round in `merged`. Each is decoded against the
        model that it was trained from. The iteration ends after `count` updates, when all sites have answered
        and wait for a newer model, or at the deadline.
        """


@runtime_checkable
class SupportsJoining(Protocol):
    """A hub side to which sites can come while the study runs."""

    def joined_sites(self) -> Collection[str]:
        """Return the sites that were admitted to the study after it began, and have been heard of."""


@runtime_checkable
class AwaitsReturn(Protocol):
    """A hub side whose sites can stop and be started again while the hub runs."""

    def wait_for_return(self, round: int, sites: Sequence[str], max_wait_s: float, why: str) -> bool:
        """Wait until a site that dropped out has been started again; log `why` it is waited for.

        Returns False if none of the sites has dropped out, or none comes back in time.
        """
