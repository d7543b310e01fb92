"""The interface of a privacy mechanism: site and hub side in one record, so that they stay consistent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import msgspec

from medfed.errors import MedfedError, PrivacyError
from medfed.privacy.accounting.accountant import MechanismSteps
from medfed.registry import Kind
from medfed.wire.messages import HubChannel, SiteChannel
from medfed.wire.update import GlobalModel, Update, check_update
from medfed.wire.weights import Weights

# A mechanism's state at the hub between rounds, kept in the hub's checkpoint: named groups of named tensors.
# Every group's name begins with `GROUP`, which separates it from the aggregation rule's state.
PrivacyState = Mapping[str, Weights]
GROUP = "privacy:"
# Those that begin with `PUBLIC` are for everyone to read, and the others that a hub publishes are encrypted.
PUBLIC = f"{GROUP}public:"

Positive = Annotated[float, msgspec.Meta(gt=0)]
Probability = Annotated[float, msgspec.Meta(gt=0, lt=1)]

# Whether scores of validation cases leave a hospital, which a mechanism's epsilon does not cover.
Scores = Literal["withhold", "send"]

# What a site says of the format of its files (`runs/rounds.py`): whether labels name their structures, and
# whether images have a size in mm. Without it nobody could see that a number means different structures at
# two hospitals. It leaves under every mechanism, and the study page says so.
FORMAT_SCALARS = ("labels/named", "images/in_mm")

# Scalars that reveal nothing about a patient: the study, the accountant or the files' format determine them.
PUBLIC_SCALARS = ("train/steps", "train/rate", *FORMAT_SCALARS)


class UpdateProtector(Protocol):
    """Protects one round's update at one site, after it was checked and before it is sent."""

    def protect(self, update: Update, weights: Weights) -> Update:
        """Return what may leave the hospital instead of this update."""
        ...


class RoundSession(Protocol):
    """The hub's session for one round: expected sites, validation, and input to the aggregation."""

    @property
    def sites(self) -> Sequence[str]:
        """The sites whose updates are awaited."""
        ...

    @property
    def deadline_s(self) -> float | None:
        """How many seconds to wait for them; None waits without a limit."""
        ...

    @property
    def refused(self) -> Mapping[str, MedfedError]:
        """The sites that were refused before their updates, each with the reason."""
        ...

    def admit(self, update: Update, weights: Weights) -> Update:
        """Return the update if it fits the round and the model.

        Raises:
            UpdateError: saying what does not fit.
        """
        ...

    def reveal(self, updates: Sequence[Update], weights: Weights) -> Sequence[Update]:
        """Return the updates that the hub merges, from those that arrived."""
        ...


class Privacy(Kind, frozen=True):
    """What happens to an update before it leaves.

    The methods in the order of their calls: `objections` when a study is read and `planned` when it starts;
    in every round `filter_scalars` and `protect` at each site, then `admit`, `reveal` and `prepare_merge` at
    the hub. A mechanism whose sites exchange keys first also overrides `protectors` and `open_session`.
    """

    folder: ClassVar[str] = "privacy"

    # Whether the hub sees each site's own update after `reveal`. If not, rules that need it are refused.
    reveals_each_update: ClassVar[bool] = True

    # Whether every site states one example, so that all have the same weight.
    equal_weights: ClassVar[bool] = False

    # What the hub learns of a site's number of training cases: it is sent, or only the sum over all sites
    # can be read, or all sites count alike and it is not sent.
    shows_examples: ClassVar[Literal["sent", "summed", "alike"]] = "sent"

    # The groups of tensors that `protect` adds in place of readable ones, and the scalars that it reports.
    sends: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[tuple[str, ...]] = ()

    # The groups of its state that the hub publishes with the weights, for `decrypt` at the sites.
    broadcast: ClassVar[tuple[str, ...]] = ()

    # Whether training itself is private for each patient: the site then trains under `PrivateTraining`.
    trains_privately: ClassVar[bool] = False

    # Whether the network has group norm instead of batch norm, at every site and at the hub: batch norm mixes
    # the patients of a batch and keeps statistics of them.
    replaces_batch_norm: ClassVar[bool] = False

    # Whether a site's half is all there is of it: then it holds under a hub that is not medfed's, too.
    site_only: ClassVar[bool] = False

    # The packages that it imports besides medfed's own requirements, and what installs each.
    packages: ClassVar[Mapping[str, str]] = {}

    # Settings with which the contract test builds a mechanism that has settings without a default.
    example: ClassVar[Mapping[str, Any]] = {}

    def objections(self, study: Any) -> Iterator[str]:
        """Yield why the mechanism cannot keep its promise in this `Study`, each beginning with the key."""
        yield from ()

    def notes(self) -> tuple[str, ...]:
        """Return sentences that a person should read before the study starts."""
        return ()

    @property
    def follows_model(self) -> bool:
        """Whether `for_round` reads what the hub publishes beside the model."""
        return False

    def for_round(self, received: GlobalModel) -> Self:
        """Return the mechanism for the round that trains from this model, for example with the round's clip.

        Raises:
            PrivacyError: if the hub published nothing that fits.
        """
        return self

    @property
    def bytes_per_number(self) -> float:
        """How many bytes a number of the model takes at most, as this mechanism sends it."""
        return 4.0

    @property
    def min_sites(self) -> int:
        """The smallest number of sites that must answer a round; a field where a study sets it."""
        return 1

    def required(self, sites: int) -> int:
        """Return how many of so many sites that begin a round must stay to its end."""
        return self.min_sites

    def planned(self, rounds: int) -> Self:
        """Return the mechanism for this number of rounds, for example with the noise that meets a target."""
        return self

    def round_cost(self) -> MechanismSteps | None:
        """Return the privacy cost of one round's update for the ledger; None if rounds are not charged."""
        return None

    def protect(self, update: Update, weights: Weights) -> Update:
        """Return what may leave the hospital instead of this update; called at the site, after `check`."""
        raise NotImplementedError

    def filter_scalars(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        """Return the scalars that may leave; called at the site for everything that is sent."""
        return scalars

    def admit(self, update: Update, weights: Weights) -> Update:
        """Return the update as it arrived at the hub, if it fits the round and the model.

        Raises:
            UpdateError: saying what does not fit.
        """
        return check_update(update, weights)

    def reveal(self, updates: Sequence[Update], weights: Weights) -> Sequence[Update]:
        """Return the updates to merge, from those that arrived; called at the hub."""
        return updates

    def protectors(self, channel: SiteChannel) -> Iterator[UpdateProtector]:
        """Yield an `UpdateProtector` for each transmission of this round's update; resume after it was sent.

        Most mechanisms yield once. None is yielded if the site no longer takes part in the round, and a
        further one if the hub had to restart the round's key exchange.
        """
        yield self

    def decrypt(self, received: GlobalModel, channel: SiteChannel) -> GlobalModel:
        """Return the received model as this site trains and measures it; called for every model.

        Raises:
            PrivacyError: if a part of it is encrypted and this site cannot read it.
        """
        sealed = [one for one in received.groups if one.startswith(GROUP) and not one.startswith(PUBLIC)]
        if encrypted := sorted(sealed):
            raise PrivacyError(
                f"site '{channel.site}': a part of the model is encrypted ('{encrypted[0]}'), and only sites "
                "that train under the study's privacy hold its key"
            )
        return received

    def open_session(self, channel: HubChannel, deadline_s: float | None) -> RoundSession:
        """Return the hub's session for this round, after any key exchange that precedes the updates."""
        return PlainSession(self, channel.sites, deadline_s)

    def init(self, weights: Weights) -> PrivacyState:
        """Return the hub's state before the first round."""
        return {}

    def prepare_merge(
        self, updates: Sequence[Update], state: PrivacyState, weights: Weights
    ) -> tuple[Sequence[Update], PrivacyState]:
        """Return the rule's input and the new state, with what the hub adds, such as central noise."""
        return updates, state


@dataclass(frozen=True)
class PlainSession:
    """A session that leaves everything to the mechanism."""

    privacy: Privacy
    sites: Sequence[str]
    deadline_s: float | None
    refused: Mapping[str, MedfedError] = field(default_factory=dict)

    def admit(self, update: Update, weights: Weights) -> Update:
        return self.privacy.admit(update, weights)

    def reveal(self, updates: Sequence[Update], weights: Weights) -> Sequence[Update]:
        return self.privacy.reveal(updates, weights)


def split_state(state: Mapping[str, Weights]) -> tuple[dict[str, Weights], dict[str, Weights]]:
    """Return the hub's state split into the privacy mechanism's groups and the rule's."""
    own = {name: group for name, group in state.items() if name.startswith(GROUP)}
    return own, {name: group for name, group in state.items() if name not in own}


def public_only(scalars: Mapping[str, float], scores: Scores) -> dict[str, float]:
    """Return the scalars without information on training patients; others' scores if `scores` is 'send'."""
    return {
        name: value
        for name, value in scalars.items()
        if name in PUBLIC_SCALARS
        or name.startswith("privacy/")
        or (scores == "send" and not name.startswith("train/"))
    }


def not_covered(scores: Scores) -> str:
    """Return the sentence on validation scores for a mechanism's notes."""
    handling = "are sent as they are" if scores == "send" else "stay in the hospitals (privacy.scores)"
    return f"validation scores are not covered by epsilon and {handling}"
