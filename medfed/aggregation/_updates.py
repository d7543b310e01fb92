"""What rules check and read of a round's updates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from medfed.aggregation._rule import Rule
from medfed.errors import RuleError
from medfed.registry import kind_of
from medfed.wire.update import Update


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


def newest_round(sites: Sequence[Update]) -> int:
    """Return the newest round that one of the updates answers."""
    return max(update.round for update in sites)


def describe(update: Update) -> str:
    """Return how an error names an update."""
    return f"update of site '{update.site}' for round {update.round}"
