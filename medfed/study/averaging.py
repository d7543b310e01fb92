"""Which mean of its rounds' models a study may end with, and which of its parts bear that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from medfed.aggregation import Rule
from medfed.privacy import Privacy
from medfed.privacy._privacy import PUBLIC
from medfed.registry import kind_of


class Ema(msgspec.Struct, tag="ema", tag_field="kind", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The exponential moving average of all rounds' models: one `n` rounds back weighs `decay` to the n-th.

    decay: with 0.9, the last ten rounds have about two thirds of the weight.
    """

    decay: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.9


# The mean of so many last rounds, 1 for the last round's model alone, or a moving average over all.
Average = Annotated[int, msgspec.Meta(ge=1)] | Ema


def averages(average: Average) -> bool:
    """Return whether a study ends with a mean of several rounds' models."""
    return isinstance(average, Ema) or average > 1


def first_averaged(average: Average, rounds: int) -> int:
    """Return the first round whose model is part of the mean."""
    return 1 if isinstance(average, Ema) else rounds - average + 1


def averaging_problems(average: Average, rounds: int, rule: Rule, privacy: Privacy) -> Iterator[str]:
    """Yield why a hub could not end a study with a mean of its rounds' models."""
    if not averages(average):
        return
    if not isinstance(average, Ema) and average > rounds:
        yield (
            f"the mean is to be over the last {average} rounds, and the study has {rounds}; give more "
            "rounds, or set train.average to 1 for the last round's model (--set train.average=1)"
        )
    if rule.max_sites == 1 or rule.asynchronous:
        yield (
            f"with rule '{kind_of(rule)}' a round's model is of the hospitals that answered in it, so a mean "
            "over rounds weighs hospitals by chance; leave it out"
        )
    if any(not name.startswith(PUBLIC) for name in privacy.broadcast):
        yield (
            f"privacy '{kind_of(privacy)}' encrypts a part of the model, of which the hub can make no mean; "
            "leave it out"
        )
