"""What every privacy mechanism is: both of its sides in one record, so that they cannot drift apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from medfed.errors import MedfedError
from medfed.kinds import Kind
from medfed.letters import HubLetters, SiteLetters
from medfed.update import Update, check
from medfed.weights import Weights


class Shield(Protocol):
    """What stands between a checked update and the exchange, for one round at one site."""

    def protect(self, update: Update, weights: Weights) -> Update:
        """Return what may leave the hospital in place of this update."""
        ...


class Hearing(Protocol):
    """How the hub hears one round: whose updates it waits for, which it takes, and what they give it to merge."""

    @property
    def sites(self) -> Sequence[str]:
        """The sites whose updates are awaited."""
        ...

    @property
    def deadline_s(self) -> float | None:
        """How long they are awaited."""
        ...

    @property
    def refused(self) -> Mapping[str, MedfedError]:
        """The sites that were asked and are not awaited, because of what they said before."""
        ...

    def admit(self, update: Update, weights: Weights) -> Update:
        """Return the update if it fits the round and the model.

        Raises:
            UpdateError: saying what does not fit.
        """
        ...

    def reveal(self, updates: Sequence[Update], weights: Weights) -> Sequence[Update]:
        """Return what the hub merges, from what arrived."""
        ...


class Privacy(Kind, frozen=True):
    """What happens to an update before it leaves.

    Most mechanisms are `protect` and `reveal`. One whose sites settle something among themselves by letters overrides
    `meet` and `convene` instead.
    """

    folder: ClassVar[str] = "privacy"

    # Whether the hub, after `reveal`, still sees each site's own update. Rules that need it are refused where not.
    reveals_each_update: ClassVar[bool] = True

    # The groups of tensors that `protect` adds in place of the readable ones, and the numbers it adds to the report.
    sends: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[tuple[str, ...]] = ()

    def fewest_sites(self) -> int:
        """Return how many sites must answer a round at least."""
        return 1

    def protect(self, update: Update, weights: Weights) -> Update:
        """Return what may leave the hospital in place of this update; called there, after `check`."""
        raise NotImplementedError

    def reveal(self, updates: Sequence[Update], weights: Weights) -> Sequence[Update]:
        """Return what the hub merges, from what arrived; called at the hub."""
        return updates

    def meet(self, letters: SiteLetters) -> Iterator[Shield]:
        """Yield what protects this round's update, each time it is to be sent; go on when it was sent.

        Once for most. Not at all where this site has no part in the round any more, and once more where the hub had to
        begin a round's letters again.
        """
        yield self

    def convene(self, letters: HubLetters, deadline_s: float | None) -> Hearing:
        """Return how the hub hears this round, having heard by letter what comes before the updates."""
        return _Plain(self, letters.sites, deadline_s)


@dataclass(frozen=True)
class _Plain:
    """A round of a mechanism without letters."""

    privacy: Privacy
    sites: Sequence[str]
    deadline_s: float | None
    refused: Mapping[str, MedfedError] = field(default_factory=dict)

    def admit(self, update: Update, weights: Weights) -> Update:
        return check(update, weights)

    def reveal(self, updates: Sequence[Update], weights: Weights) -> Sequence[Update]:
        return self.privacy.reveal(updates, weights)
