"""Which parts of a study bear that it ends with the mean of its last rounds' models."""

from __future__ import annotations

from collections.abc import Iterator

from medfed.aggregation import Rule
from medfed.privacy import Privacy
from medfed.privacy._privacy import PUBLIC
from medfed.registry import kind_of


def averaging_problems(average: int, rounds: int, rule: Rule, privacy: Privacy) -> Iterator[str]:
    """Yield why a hub could not end a study with the mean of its last rounds' models."""
    if average < 2:
        return
    if average > rounds:
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
