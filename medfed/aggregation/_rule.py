"""The base of all rules: a frozen record of hyperparameters with `init` and `merge`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, get_origin, get_type_hints

import msgspec
import torch
from torch import Tensor

from medfed.errors import RuleError
from medfed.registry import Kind, kind_of
from medfed.wire.update import Update
from medfed.wire.weights import Weights, is_running_statistic

# What a rule keeps from round to round: named groups of named tensors, which a checkpoint can hold.
State = Mapping[str, Weights]

# What a merge returns: the new weights and the new state.
Merged = tuple[dict[str, Tensor], State]

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class Rule(Kind, frozen=True):
    """How the updates of one round become new weights."""

    folder: ClassVar[str] = "aggregation"

    # Groups that every update must carry; a study that lacks them is refused before its first round.
    needs_groups: ClassVar[tuple[str, ...]] = ()

    # Local methods, one of which must train the sites, if the rule is the hub's half of a method (SCAFFOLD).
    needs_local: ClassVar[tuple[str, ...]] = ()

    # How many sites may answer one round; None is any number, 1 is cyclic weight transfer.
    max_sites: ClassVar[int | None] = None

    # Whether updates may answer different rounds; the hub merges as soon as `buffer_size` of them have come.
    asynchronous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # msgspec checks these bounds for a study file, but not for a record that Python code makes.
        for name, hint in _bounded(type(self)).items():
            try:
                msgspec.convert(getattr(self, name), hint)
            except msgspec.ValidationError as error:
                raise ValueError(f"{kind_of(self)}.{name}: {error}") from None

    @property
    def buffer_size(self) -> int:
        """How many updates an asynchronous rule merges at a time."""
        return 1

    @property
    def broadcast(self) -> tuple[str, ...]:
        """Groups of the state that the hub publishes with the weights, for the sites' training."""
        return ()

    @property
    def needs_scalars(self) -> tuple[str, ...]:
        """Scalars that every update must carry for this rule."""
        return ()

    @property
    def supports_secure_aggregation(self) -> bool:
        """Whether the mean of all updates, as one update, merges as the single updates would.

        False unless a rule says otherwise: under secure aggregation the hub sees this mean only, and a rule
        that compares sites would silently become FedAvg. A rule that says True must need no scalars and no
        groups, take one update or more, and not look at the number of updates; the contract test checks it.
        """
        return False

    def min_sites(self) -> int:
        """Return the smallest number of updates that a merge needs; a study's quorum can't be lower."""
        return 1

    def init(self, weights: Weights) -> State:
        """Return the state before the first round."""
        return {}

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> Merged:
        """Return the new weights and the new state.

        Raises:
            RuleError: if this rule cannot merge these updates, with their number and the number needed.
        """
        raise NotImplementedError


@cache
def _bounded(record: type[Rule]) -> dict[str, Any]:
    hints = get_type_hints(record, include_extras=True)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}


def validated_updates(updates: Iterable[Update], asynchronous: bool = False) -> list[Update]:
    """Return the updates that trained, sorted by site, so that a merge can't depend on who answered first.

    A site that trained on no example has no weight in a mean and no vote in a median, so it is left out; one
    that only evaluates has sent no weights at all. An asynchronous merge may hold several updates of one
    site, of different rounds.

    Raises:
        RuleError: if none is left, two are of one site (and round), or one has a negative number of examples.
    """
    ordered = sorted(updates, key=lambda update: (update.site, update.round))
    if not ordered:
        raise RuleError("there is no update to merge: no site answered this round")
    for one, two in pairwise(ordered):
        if one.site == two.site and not (asynchronous and one.round != two.round):
            raise RuleError(
                f"two updates of site '{one.site}' for round {one.round}; only one "
                f"{'per site and round' if asynchronous else 'per site'} can be merged"
            )
    for update in ordered:
        if update.examples < 0:
            raise RuleError(f"{describe(update)} states {update.examples} examples; at least 0 are possible")
    trained = [update for update in ordered if update.examples > 0]
    if not trained:
        raise RuleError(
            f"the {len(ordered)} updates of this round have 0 examples together; at least 1 is needed"
        )
    return trained


def shares(updates: Sequence[Update]) -> list[float]:
    """Return each site's share of all examples; they sum to 1 over the sites that answered."""
    total = sum(update.examples for update in updates)
    if total < 1:
        raise RuleError(
            f"the {len(updates)} updates of this round have {total} examples together; at least 1 is needed"
        )
    return [update.examples / total for update in updates]


def require_sites(sites: Sequence[Update], needed: int, rule: Rule, why: str) -> None:
    """Check that enough sites answered for a rule.

    Raises:
        RuleError: with the number that answered, the number needed, why, and what to change.
    """
    if len(sites) < needed:
        raise RuleError(
            f"{kind_of(rule)} for round {newest_round(sites)}: {len(sites)} sites answered, at least "
            f"{needed} are needed ({why}); ask more sites, or lower the number that the rule must withstand"
        )


def participation(sites: Sequence[Update], total: int | None, rule: Rule) -> float:
    """Return the share of the study's `total` sites that answered; 1 if `total` is None.

    Raises:
        RuleError: if more sites answered than the rule says the study has.
    """
    if total is None:
        return 1.0
    if len(sites) > total:
        raise RuleError(
            f"{kind_of(rule)} for round {newest_round(sites)}: {len(sites)} sites answered, but rule.sites "
            f"is {total}; set rule.sites to the number of sites in the study"
        )
    return len(sites) / total


def required_scalar(update: Update, name: str, meaning: str) -> float:
    """Return a number that an update must carry; `meaning` says in the error what it is used for.

    Raises:
        RuleError: naming the site, the round and the number, if it is missing or not finite.
    """
    value = update.scalars.get(name)
    if value is None or value != value or abs(value) == float("inf"):
        raise RuleError(f"{describe(update)} has no finite scalar '{name}', which {meaning} (found: {value})")
    return float(value)


def state_group(state: State, group: str, rule: Rule) -> Weights:
    """Return one group of the state.

    Raises:
        RuleError: if another rule made the state.
    """
    if group not in state:
        raise RuleError(
            f"{kind_of(rule)}: the state has no group '{group}' (it has: {sorted(state) or 'none'}); start "
            f"from the rule's init, or resume a run of the same rule"
        )
    return state[group]


def newest_round(sites: Sequence[Update]) -> int:
    """Return the newest round that one of the updates answers."""
    return max(update.round for update in sites)


def describe(update: Update) -> str:
    """Return how an error names an update."""
    return f"update of site '{update.site}' for round {update.round}"


def zeros_for_state(weights: Weights) -> dict[str, Tensor]:
    """Return zeros, float32 or wider, for every tensor that a server optimiser steps."""
    return {
        name: torch.zeros(tensor.shape, dtype=state_dtype(tensor.dtype))
        for name, tensor in weights.items()
        if not is_running_statistic(name)
    }


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for half precisions, which lose a moment's small steps, else the dtype itself."""
    return torch.promote_types(dtype, torch.float32)
