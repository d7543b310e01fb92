"""The record of an exchange, which a study or a script names and which opens its sides.

It is apart from the sides' interfaces, so that a process which only hands messages on (a Flower ClientApp)
can import an exchange without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from medfed.registry import Kind

if TYPE_CHECKING:
    from medfed.exchange._exchange import HubSide, SiteSide


class Offer(NamedTuple):
    """A study that the hub offers: its digest, its text, and whether its hub runs at the moment.

    `is_live` is only looked at where there are several.
    """

    digest: str
    text: str
    is_live: bool = True


class Exchange(Kind, frozen=True):
    """How sites and the hub exchange models and updates."""

    folder: ClassVar[str] = "exchange"

    # Whether medfed's hub merges. The hub of a network that others lead knows only plain FedAvg: whatever
    # needs medfed's half at the hub is refused where a study is read and where a callback begins to fit.
    own_hub: ClassVar[bool] = True

    @property
    def is_signed(self) -> bool:
        """Whether what each party writes is signed, so that nobody in between can speak as another."""
        return bool(getattr(self, "credentials", ""))

    def addresses(self) -> tuple[str, ...]:
        """Return to which hosts or folders this party connects, without passwords, for people to read."""
        return ()

    def open_hub(self, study_digest: str, folder: Path) -> HubSide:
        """Return the hub's side for a study (its digest); `folder` holds what must survive a restart."""
        raise NotImplementedError

    def open_site(self, study_digest: str, site: str, folder: Path) -> SiteSide:
        """Return a site's side for a study (its digest); `folder` holds what must survive a restart."""
        raise NotImplementedError

    def offered_studies(
        self,
        site: str,
        *,
        known: Collection[str] = (),
        max_wait_s: float | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> list[Offer]:
        """Return the studies that the hub offers to a site to approve, waiting for one.

        Besides those that are `known` to the site, by digest, if the hub still holds them. `log` is told once
        what is awaited.

        Raises:
            EndedError: if there is none within `max_wait_s`.
        """
        raise NotImplementedError


def no_hub(kind: str, theirs: str) -> str:
    """Return why medfed is no hub over an exchange of this kind, for an ExchangeError."""
    return (
        f"exchange.kind: '{kind}' takes part in a network whose hub is not medfed's ({theirs}); to lead a "
        "study with medfed's hub, take 'nats' or 'folder'"
    )


def no_study(kind: str) -> str:
    """Return why an exchange of this kind shows a hospital no study to approve, for an ExchangeError."""
    return (
        f"exchange.kind: '{kind}' offers no study that a hospital could approve: what is trained is "
        "agreed with the network's leader. Take part by a script of your own with medfed.open_site and "
        "FederatedCallback (docs/how-to/other-networks.md)"
    )
