"""The verbs of an exchange, a site's two and a hub's two, and what a hub receives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from medfed.errors import MedfedError
from medfed.registry import Kind
from medfed.wire.messages import HubMessaging, SiteMessaging
from medfed.wire.update import GlobalModel, Update


@dataclass(frozen=True)
class ReceivedUpdate:
    """What came of one site in one round: its update, or the error that stands in its place."""

    site: str
    update: Update | None
    error: MedfedError | None = None
    bytes_up: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Receipt:
    """What `send` puts on the wire, for the audit log: to whom and by which way, how many
    bytes, and their SHA-256.

    Where they travel in chunks it is the SHA-256 of the chunks' SHA-256 (in hex, one after the other), as the
    signed manifest lists them, so that each byte is hashed once.
    """

    to: str
    bytes: int
    sha256: str


class SiteSide(SiteMessaging, Protocol):
    """What a site does at an exchange. All verbs may be repeated: a second time changes nothing."""

    def fetch(self, site: str, round: int) -> GlobalModel:
        """Return the newest global model of at least this round, waiting until there is one.

        Raises:
            ExchangeError: if the exchange is closed or cannot be reached any more.
        """
        ...

    def receipt(self, update: Update) -> Receipt:
        """Return what `send` would put on the wire; nothing is sent."""
        ...

    def send(self, update: Update) -> None:
        """Deliver an update; the first one of a site and round counts."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the study is known to have ended early: a site then stops at its next step and not
        at its next merge.
        """
        ...

    def withdraw(self, site: str, reason: str) -> None:
        """Tell the hub that this site stops, so that nobody waits for it. The reason holds no patient data."""
        ...


class HubSide(HubMessaging, Protocol):
    """What a hub does at an exchange."""

    def publish(self, sent: GlobalModel, kept: Callable[[], None] = lambda: None) -> int:
        """Make a global model available to every site, durably; return its size in bytes.

        Its bytes may be on their way before `kept` has returned, which raises if the hub's own copy is not
        safe; no site takes the model before.
        """
        ...

    def collect(self, round: int, sites: Sequence[str], deadline_s: float | None) -> Iterator[ReceivedUpdate]:
        """Yield one arrival a site as they come, until all have answered or the deadline has passed.

        A site that answered nothing in time yields nothing. One that sent what cannot be decoded, or
        withdrew, yields an arrival with the error.
        """
        ...

    def close(self) -> None:
        """Let every waiting party go; a site that waits raises ExchangeError."""
        ...


@runtime_checkable
class SupportsAsync(Protocol):
    """What a hub's side can also do where a rule merges without rounds."""

    def collect_async(
        self, round: int, sites: Sequence[str], deadline_s: float | None, enough: int
    ) -> Iterator[ReceivedUpdate]:
        """Yield updates for this round or an earlier one as they come, each held against the model
        it was made from.

        It ends when `enough` have come, when all sites have answered and wait for a newer model,
        or at the deadline.
        """
        ...


class Exchange(Kind, frozen=True):
    """How sites and hub meet."""

    folder: ClassVar[str] = "exchange"

    def open_hub(self, study: str, folder: Path) -> HubSide:
        """Return the hub's side for a study (its digest); what must survive a restart is kept under `folder`."""
        raise NotImplementedError

    def open_site(self, study: str, site: str, folder: Path) -> SiteSide:
        """Return a site's side for a study (its digest); what must survive a restart is kept under `folder`."""
        raise NotImplementedError

    def advertised_study(self) -> tuple[str, str]:
        """Return digest and text of the study that the hub offers, for a site whose people have not
        agreed to it yet.
        """
        raise NotImplementedError
