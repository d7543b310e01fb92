"""What every rule is: a frozen record of hyperparameters with `init` and `merge`."""

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

# What a rule carries from round to round: named groups of named tensors, so that a checkpoint can hold it.
State = Mapping[str, Weights]

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class Rule(Kind, frozen=True):
    """How the updates of one round become new weights."""

    folder: ClassVar[str] = "aggregation"

    # Whether a merge needs each site's own update in the clear. A sum (secure aggregation) is enough where
    # not.
    needs_each_update: ClassVar[bool] = False

    # The scalars and groups that every update must carry, so that a study is refused before its first round.
    needs_groups: ClassVar[tuple[str, ...]] = ()

    # The local methods of which one must train the sites, where the hub's part means nothing
    # without the sites'.
    needs_local: ClassVar[tuple[str, ...]] = ()

    # How many sites may answer one round; None is any number. One is cyclic weight transfer.
    most_sites: ClassVar[int | None] = None

    # Whether updates may answer different rounds, so that the hub merges as soon as `enough` of them have
    # come.
    asynchronous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # msgspec holds a study file to these bounds, but not a record that Python code makes.
        for name, hint in _bounded(type(self)).items():
            try:
                msgspec.convert(getattr(self, name), hint)
            except msgspec.ValidationError as error:
                raise ValueError(f"{kind_of(self)}.{name}: {error}") from None

    @property
    def enough(self) -> int:
        """How many updates an asynchronous rule merges at a time."""
        return 1

    @property
    def broadcast(self) -> tuple[str, ...]:
        """The groups of the state that the hub publishes beside the weights, because the
        sites' training uses them.
        """
        return ()

    @property
    def needs_scalars(self) -> tuple[str, ...]:
        """The scalars that every update must carry for this rule."""
        return ()

    @property
    def takes_a_sum(self) -> bool:
        """Whether one update, the mean of all sites' with their examples summed, merges as
        the single ones would.
        """
        apart = self.needs_each_update or self.needs_scalars or self.needs_groups or self.asynchronous
        return not apart and self.most_sites is None and self.fewest_sites() <= 1

    def fewest_sites(self) -> int:
        """Return how many updates a merge needs at least; a study's quorum can't be lower."""
        return 1

    def init(self, weights: Weights) -> State:
        """Return the state before the first round."""
        return {}

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        """Return the new weights and the new state.

        Raises:
            RuleError: if these updates cannot be merged by this rule, saying how many there were and are
            needed.
        """
        raise NotImplementedError


@cache
def _bounded(record: type[Rule]) -> dict[str, Any]:
    hints = get_type_hints(record, include_extras=True)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}


def by_site(updates: Iterable[Update]) -> list[Update]:
    """Return the updates that trained, sorted by site, so that a merge can't depend on who answered first.

    A site that trained on no example has no weight in a mean and no voice in a vote, so it is left out here;
    one that only evaluates has sent no weights at all.

    Raises:
        RuleError: if none is left, or two are of one site.
    """
    ordered = sorted(updates, key=lambda update: (update.site, update.round))
    if not ordered:
        raise RuleError("a merge without an update: no site answered this round")
    for one, two in pairwise(ordered):
        if one.site == two.site:
            raise RuleError(
                f"two updates of site '{one.site}' for round {one.round}; one a site can be merged"
            )
    return trained(ordered)


def trained(ordered: list[Update]) -> list[Update]:
    """Return the updates that trained on at least one example.

    Raises:
        RuleError: if there is none, or one says fewer than 0.
    """
    for update in ordered:
        if update.examples < 0:
            raise RuleError(f"{who(update)} holds {update.examples} examples; at least 0 is possible")
    trained = [update for update in ordered if update.examples > 0]
    if not trained:
        raise RuleError(
            f"the {len(ordered)} updates of this round hold 0 examples together; at least 1 is needed"
        )
    return trained


def shares(updates: Sequence[Update]) -> list[float]:
    """Return each site's share of all examples; they sum to 1 over the sites that answered."""
    total = sum(update.examples for update in updates)
    if total < 1:
        raise RuleError(
            f"the {len(updates)} updates of this round hold {total} examples together; at least 1 is needed"
        )
    return [update.examples / total for update in updates]


def at_least(sites: Sequence[Update], needed: int, rule: Rule, why: str) -> None:
    """Raise if fewer sites answered than a rule needs.

    Raises:
        RuleError: with the number there were, the number needed, why, and what to change.
    """
    if len(sites) < needed:
        raise RuleError(
            f"{kind_of(rule)} for round {newest(sites)}: {len(sites)} sites answered, at least "
            f"{needed} are needed ({why}); ask more sites, or lower the number that the rule must withstand"
        )


def scalar(update: Update, name: str, why: str) -> float:
    """Return a number that an update must carry.

    Raises:
        RuleError: naming the site, the round and the number, if it is missing or not finite.
    """
    value = update.scalars.get(name)
    if value is None or value != value or abs(value) == float("inf"):
        raise RuleError(f"{who(update)} has no finite scalar '{name}', which {why} (found: {value})")
    return float(value)


def carried(state: State, group: str, rule: Rule) -> Weights:
    """Return one group of the state.

    Raises:
        RuleError: if the state was not made by this rule.
    """
    if group not in state:
        raise RuleError(
            f"{kind_of(rule)}: the state has no group '{group}' (it has: {sorted(state) or 'none'}); start "
            f"from the rule's init, or resume a run of the same rule"
        )
    return state[group]


def newest(sites: Sequence[Update]) -> int:
    """Return the newest round that an update answers."""
    return max(update.round for update in sites)


def who(update: Update) -> str:
    """Return how an error names an update."""
    return f"update of site '{update.site}' for round {update.round}"


def zeros_for_state(weights: Weights) -> dict[str, Tensor]:
    """Return float32 (float64 for float64) zeros for every tensor that a server's optimiser steps."""
    return {
        name: torch.zeros(tensor.shape, dtype=state_dtype(tensor.dtype))
        for name, tensor in weights.items()
        if not is_running_statistic(name)
    }


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for half precisions, where a moment's small steps are lost, else the dtype itself."""
    return torch.promote_types(dtype, torch.float32)
