"""The base of all rules: a frozen record of hyperparameters with `init` and `merge`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, get_origin, get_type_hints

import msgspec
from torch import Tensor

from medfed.registry import Kind, kind_of
from medfed.wire.update import Update
from medfed.wire.weights import Weights

# The updates of one round; an iterable, so that a rule that can stream does.
Updates = Iterable[Update]

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
    def multiplies_by(self) -> tuple[str, ...]:
        """Those of them by which it multiplies updates: the hub refuses one that is far above the others'."""
        return ()

    @property
    def divides_by(self) -> tuple[str, ...]:
        """Those of them by which it divides updates: the hub refuses one that is far below the others'."""
        return ()

    @property
    def supports_secure_aggregation(self) -> bool:
        """Whether the mean of all updates, as one update, merges as the single updates would.

        False unless a rule says otherwise: under secure aggregation the hub sees this mean only, and a rule
        that compares sites would silently become FedAvg. A rule that says True must need no scalars and no
        groups, take one update or more, and not look at the number of updates; the contract test checks it.
        """
        return False

    @property
    def min_sites(self) -> int:
        """The smallest number of updates that a merge needs; a study's quorum can't be lower."""
        return 1

    def init(self, weights: Weights) -> State:
        """Return the state before the first round."""
        return {}

    def check(self, update: Update) -> None:
        """Check that one update carries what this rule needs, so that one site cannot stop a merge.

        Raises:
            RuleError: naming the site, the round and what is missing or wrong.
        """

    def merge(self, updates: Updates, state: State, weights: Weights) -> Merged:
        """Return the new weights and the new state.

        Raises:
            RuleError: if this rule cannot merge these updates, with their number and the number needed.
        """
        raise NotImplementedError


@cache
def _bounded(record: type[Rule]) -> dict[str, Any]:
    hints = get_type_hints(record, include_extras=True)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}
