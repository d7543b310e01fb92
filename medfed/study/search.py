"""The `search:` section of a study: which settings `medfed train --search` looks for, and its budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

# The sections of a study whose keys may be searched. They change the model and its training alone: data and
# splits, hospitals and measurements stay as they are, so that all trials are scored on the same patients.
SEARCHED = ("train", "rule", "network", "task.loss")

# The keys below them that a search needs for itself, or that would change what trials are compared by.
KEPT = ("train.rounds", "train.keep", "train.patience", "train.last_rounds_on_all")


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The numbers from `low` to `high`, whole ones if both are; `log` draws their logarithm evenly."""

    low: int | float
    high: int | float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def problem(self) -> str:
        """Return why there is nothing to search from `low` to `high`, '' if there is."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return f"low is {self.low:g} and high is {self.high:g}; both must be numbers with an end"
        if not self.low < self.high:
            return f"low is {self.low:g} and high is {self.high:g}; low must be below high"
        return f"log needs low above 0, found {self.low:g}" if self.log and self.low <= 0 else ""


class Search(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A hyperparameter search, by the validation patients of a simulation.

    space: which keys are searched, each with a range, such as {low: 0.0001, high: 0.01, log: true}, or the
    list of what it may be, such as [0.9, 0.99].  rounds: the budget, counted in rounds over all trials; the
    training of the chosen settings comes on top.  least: after how many rounds a trial may be stopped; null
    is the study's rounds divided by `reduction` twice; none is stopped after half of its rounds.  reduction:
    of the trials that reach a rung (`least` rounds, `reduction` times as many, ...) the best one in so many
    goes on (successive halving, ASHA).
    """

    space: Annotated[dict[str, Range | tuple[Any, ...]], Meta(min_length=1, max_length=20)]
    rounds: Annotated[int, Meta(ge=1)]
    least: Annotated[int, Meta(ge=1)] | None = None
    reduction: Annotated[int, Meta(ge=2)] = 3

    def first_rung(self, rounds: int) -> int:
        """Return after how many of a study's rounds a trial may be stopped."""
        return self.least or math.ceil(rounds / self.reduction**2)

    def problems(self, rounds: int) -> Iterator[str]:
        """Yield what is wrong with a search in a study of so many rounds."""
        for key, values in self.space.items():
            # `train` as a whole would set the keys that are kept.
            below = key != "train" and any(key == part or key.startswith(f"{part}.") for part in SEARCHED)
            if inner := [other for other in self.space if other.startswith(f"{key}.")]:
                yield (
                    f"search.space: '{key}' is searched as a whole, and so is '{inner[0]}' in it, so that "
                    "one would undo the other; search one of them"
                )
            if not below or key in KEPT or key.startswith(("train.keep_local", "train.only", "train.lora")):
                yield (
                    f"search.space: '{key}' cannot be searched; what can is below {', '.join(SEARCHED)}, "
                    f"without {', '.join(KEPT)}, keep_local, only and lora"
                )
            if isinstance(values, Range):
                if problem := values.problem():
                    yield f"search.space: '{key}': {problem}"
            elif len(values) < 2 or any(one in values[:n] for n, one in enumerate(values)):
                yield f"search.space: '{key}' lists {len(values)} values; give at least two, each once"
        if self.rounds < rounds:
            yield (
                f"search.rounds: {self.rounds} rounds are fewer than one trial's {rounds} (train.rounds); "
                "give several times as many"
            )
        if self.first_rung(rounds) > rounds:
            yield f"search.least: {self.least} is more than the study's {rounds} rounds"
