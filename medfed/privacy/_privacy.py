"""What every privacy mechanism is: both of its sides in one record, so that they cannot drift apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol, Self

import msgspec

from medfed.errors import MedfedError, PrivacyError
from medfed.privacy.accounting.accountant import MechanismSteps
from medfed.registry import Kind
from medfed.wire.messages import HubLetters, SiteLetters
from medfed.wire.update import Global, Update, check
from medfed.wire.weights import Weights

# What a mechanism carries at the hub from round to round, kept in its checkpoint: named groups of named
# tensors, each group's name beginning with `GROUP`, so that no rule takes it for its own.
PrivacyState = Mapping[str, Weights]
GROUP = "privacy:"

Positive = Annotated[float, msgspec.Meta(gt=0)]
Probability = Annotated[float, msgspec.Meta(gt=0, lt=1)]

# The scalars that hold nothing about a patient: what the study or the accountant decides.
PUBLIC_SCALARS = ("train/steps", "train/rate")


class UpdateProtector(Protocol):
    """What stands between a checked update and the exchange, for one round at one site."""

    def protect(self, update: Update, weights: Weights) -> Update:
        """Return what may leave the hospital in place of this update."""
        ...


class RoundSession(Protocol):
    """How the hub hears one round: whose updates it waits for, which it takes, and what they
    give it to merge.
    """

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

    In the order in which they are called: `objections` when a study is read, `planned` when it starts; for
    every round `filter_scalars` and `protect` in each hospital, `reveal` and `prepare_merge` at the hub. A mechanism whose
    sites settle something among themselves by letters overrides `protectors` and `open_session` besides.
    """

    folder: ClassVar[str] = "privacy"

    # Whether the hub, after `reveal`, still sees each site's own update. Rules that need it are
    # refused where not.
    reveals_each_update: ClassVar[bool] = True

    # The groups of tensors that `protect` adds in place of the readable ones, and the numbers it adds
    # to the report.
    sends: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[tuple[str, ...]] = ()

    # The groups of its state that the hub publishes beside the weights, for `open` at the sites.
    broadcast: ClassVar[tuple[str, ...]] = ()

    # Whether training itself is made private, patient by patient: a site then trains under `PrivateTraining`.
    trains_privately: ClassVar[bool] = False

    # Whether the network is built with group norm for batch norm, at every site and at the hub: batch norm
    # mixes the patients of a batch and keeps statistics of them.
    replaces_batch_norm: ClassVar[bool] = False

    # Settings that make a whole one, for kinds whose settings have no default: the contract test
    # builds with them.
    example: ClassVar[Mapping[str, Any]] = {}

    def objections(self, study: Any) -> Iterator[str]:
        """Yield what of this study (a `study.Study`) the mechanism cannot keep its promise
        with, key path first.
        """
        yield from ()

    def notes(self) -> tuple[str, ...]:
        """Return what a person should know before the study starts, a sentence each."""
        return ()

    def fewest_sites(self) -> int:
        """Return how many sites must answer a round at least."""
        return 1

    def planned(self, rounds: int) -> Self:
        """Return the mechanism with what depends on the number of rounds decided, such as the
        noise of a target.
        """
        return self

    def round_cost(self) -> MechanismSteps | None:
        """Return what one round's update costs the site, for its ledger; None where it
        isn't counted by rounds.
        """
        return None

    def protect(self, update: Update, weights: Weights) -> Update:
        """Return what may leave the hospital in place of this update; called there, after `check`."""
        raise NotImplementedError

    def filter_scalars(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        """Return the numbers for the report that may leave; called in the hospital for
        everything that is sent.
        """
        return scalars

    def reveal(self, updates: Sequence[Update], weights: Weights) -> Sequence[Update]:
        """Return what the hub merges, from what arrived; called at the hub."""
        return updates

    def protectors(self, letters: SiteLetters) -> Iterator[UpdateProtector]:
        """Yield what protects this round's update, each time it is to be sent; go on when it was sent.

        Once for most. Not at all where this site has no part in the round any more, and once more where the
        hub had to begin a round's letters again.
        """
        yield self

    def decrypt(self, received: Global, letters: SiteLetters) -> Global:
        """Return the hub's model as this site trains and measures it; called there for
        every model that comes.

        Raises:
            PrivacyError: if a part of it is encrypted and this site cannot read it.
        """
        if found := sorted(name for name in received.groups if name.startswith(GROUP)):
            raise PrivacyError(
                f"site '{letters.site}': a part of the model is encrypted ('{found[0]}'), and only sites that train under "
                f"the study's privacy hold its key"
            )
        return received

    def open_session(self, letters: HubLetters, deadline_s: float | None) -> RoundSession:
        """Return how the hub hears this round, having heard by letter what comes before the updates."""
        return _Plain(self, letters.sites, deadline_s)

    def init(self, weights: Weights) -> PrivacyState:
        """Return the hub's state before the first round."""
        return {}

    def prepare_merge(
        self, updates: Sequence[Update], state: PrivacyState, weights: Weights
    ) -> tuple[Sequence[Update], PrivacyState]:
        """Return what the rule merges and the new state: what the hub itself adds, such as central noise."""
        return updates, state


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


def split_state(state: Mapping[str, Weights]) -> tuple[dict[str, Weights], dict[str, Weights]]:
    """Return the hub's state in two: the privacy mechanism's groups, and the rule's."""
    own = {name: group for name, group in state.items() if name.startswith(GROUP)}
    return own, {name: group for name, group in state.items() if name not in own}


def public_only(scalars: Mapping[str, float], scores: str) -> dict[str, float]:
    """Return the scalars that hold nothing about training patients; scores of the others only
    where `scores` is `send`.
    """
    return {
        name: value
        for name, value in scalars.items()
        if name in PUBLIC_SCALARS
        or name.startswith("privacy/")
        or (scores == "send" and not name.startswith("train/"))
    }
