"""What the hub accepts of a site's update, besides weights that fit the model.

One site may lie. Its examples weight the merge, its numbers stand in the report, and what a rule needs of it
may be missing: here each is held to what an honest site could have sent. What would harm the model refuses
the update, with the site, the round and the reason, and the round goes on without it; a number that could
only harm the report is left out, with a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import filterfalse
from math import isfinite

import torch

from medfed.aggregation import Rule, State
from medfed.errors import UpdateError
from medfed.federation.config import HubConfig
from medfed.federation.egress import ROWS
from medfed.runs.rounds import SiteResult
from medfed.wire.untrusted_text import for_log
from medfed.wire.update import Update
from medfed.wire.weights import Weights, is_running_statistic

# The group of the hub's state with the examples of each site's first merged update.
EXAMPLES = "hub:examples"

# The group of the hub's state with the newest merged round of each site, where updates are merged late.
MERGED = "hub:merged"

# How far a site's examples may grow over a run: cases that could not be read may be repaired, a hospital with
# other data begins a new run.
MAX_GROWTH = 1.1

# How many times as many they may be in rounds that train on validation cases, too; a site states no more.
MOST_ON_ALL = 2

# A first update of more than this many times the examples of all others together is warned about.
DOMINANT = 10

# The most numbers besides rows, the longest name and the largest value that a report shows.
MAX_NUMBERS, MAX_NAME, MAX_VALUE = 1000, 200, 1e15


def check_examples(update: Update, config: HubConfig, state: State) -> tuple[str, ...]:
    """Return what a person should know of an update's example count; none is stated under a secure sum.

    Raises:
        UpdateError: if it is more than the study allows, or more than the site began with.
    """
    stated, first = update.examples, first_examples(state).get(update.site)
    if config.privacy.equal_weights and stated != 1:
        raise UpdateError(
            f"{update}: states {stated} examples; under this privacy mechanism every site states 1, so that "
            "all have the same weight"
        )
    if config.max_examples is not None and stated > config.max_examples:
        raise UpdateError(
            f"{update}: states {stated} examples, this study takes at most {config.max_examples} of a site "
            "(sampling.max_examples)"
        )
    if first is None:
        return ()
    most = first * MOST_ON_ALL if trains_on_all(config.on_all_from, update.round) else first
    if stated > most * MAX_GROWTH:
        raise UpdateError(
            f"{update}: states {stated} examples, and began this run with {first}; a hospital with other "
            "data begins a new run"
        )
    return () if first <= stated <= most else (f"states {stated} examples, and began with {first}",)


def trains_on_all(on_all_from: int | None, round: int) -> bool:
    """Return whether validation cases train, too, in a round."""
    return on_all_from is not None and round >= on_all_from


def check_needs(update: Update, rule: Rule, weights: Weights) -> None:
    """Check that an update carries what the rule merges besides the weights, and is of a form that it takes.

    Raises:
        UpdateError: if a group of tensors is missing or does not fit the model.
        RuleError: if the rule cannot merge this update.
    """
    for group in rule.needs_groups:
        if group not in update.groups:
            raise UpdateError(f"{update}: has no group '{group}', which the study's rule merges")
        for name, tensor in update.groups[group].items():
            if name not in weights or tensor.shape != weights[name].shape:
                raise UpdateError(f"{update}: '{name[:80]}' of group '{group}' does not fit the global model")
            if not tensor.is_floating_point():
                raise UpdateError(
                    f"{update}: '{name[:80]}' of group '{group}' has dtype {tensor.dtype}, expected a "
                    f"floating-point one such as {weights[name].dtype}"
                )
    rule.check(update)


def group_errors(updates: Sequence[Update], rule: Rule) -> list[UpdateError | None]:
    """Return for each update of one round why its groups do not fit the others', or None.

    Which tensors a site trains, and therefore sends in a group such as SCAFFOLD's `control`, the hub cannot
    know; that all send the same, a merge requires. The names that most sites send count (of as many, the
    longer list), so that one site which sends fewer tensors is left out and does not stop the merge.
    """
    reasons: list[UpdateError | None] = [None] * len(updates)
    for group in rule.needs_groups:
        names = [frozenset(filterfalse(is_running_statistic, u.groups.get(group, ()))) for u in updates]
        usual = max(names, key=lambda one: (names.count(one), len(one), sorted(one)), default=frozenset())
        for place, own in enumerate(names):
            if own != usual:
                odd = sorted(own ^ usual)[0]
                reasons[place] = UpdateError(
                    f"{updates[place]}: '{odd[:80]}' of group '{group}' is {'not ' * (odd in usual)}sent; of "
                    f"this round's other sites {names.count(usual)} send {len(usual)} tensors in it, this "
                    f"one {len(own)}: does it run the same study and version of medfed?"
                )
    return reasons


def factor_errors(updates: Sequence[Update], rule: Rule, factor: float) -> list[UpdateError | None]:
    """Return for each update of one round why a number that the rule weights by is no honest site's, or None.

    Too large, or too small where the rule divides by it, is `factor` times the round's median (of an even
    number, the lower of the two in the middle), as `outlier_errors` says of norms.
    """
    reasons: list[UpdateError | None] = [None] * len(updates)
    limits = [(name, True) for name in rule.multiplies_by] + [(name, False) for name in rule.divides_by]
    for name, above in limits:
        values = [update.scalars[name] for update in updates]
        median = sorted(values)[(len(values) - 1) // 2] if values else 0.0
        for place, value in enumerate(values):
            if median > 0 and (value > factor * median if above else value * factor < median):
                reasons[place] = UpdateError(
                    f"{updates[place]}: states {value:.4g} for '{name}', by which the rule weights updates; "
                    f"the median of this round's is {median:.4g}, and {factor:g} times more or less is not "
                    "from training (sampling.outlier)"
                )
    return reasons


def accept_numbers(update: Update) -> tuple[Update, tuple[str, ...]]:
    """Return the update with the numbers that a report can show, and why others were left out.

    Rows of an evaluation pass; who makes the report checks them (`evaluation/row_checks.py`).
    """
    kept: dict[str, float] = {}
    left_out, plain = [], 0
    for name, value in update.scalars.items():
        plain += not name.startswith(ROWS)
        why = _number_error(name, value) or (
            f"more than {MAX_NUMBERS} numbers" if plain > MAX_NUMBERS else None
        )
        if why is None:
            kept[name] = value
        else:
            left_out.append(f"{for_log(name, 80)}: {why}")
    if not left_out:
        return update, ()
    more = f", and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    note = f"{len(left_out)} of its numbers are left out: {'; '.join(left_out[:3])}{more}"
    return replace(update, scalars=kept), (note,)


def _number_error(name: str, value: object) -> str | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return f"a {type(value).__name__}, expected a number"
    if not abs(value) <= MAX_VALUE or not isfinite(value):
        return f"not finite, or beyond {MAX_VALUE:g}"
    if not name.startswith(ROWS) and (len(name) > MAX_NAME or for_log(name) != name):
        return "its name is too long, or has characters that do not show"
    return None


def first_examples(state: State) -> dict[str, int]:
    """Return the examples of each site's first merged update, as the hub keeps them with its checkpoints."""
    return {site: int(count) for site, count in state.get(EXAMPLES, {}).items()}


def without_examples(state: State) -> State:
    """Return the state without what this module keeps there."""
    return {group: tensors for group, tensors in state.items() if group not in (EXAMPLES, MERGED)}


def merged_rounds(state: State) -> dict[str, int]:
    """Return the newest round of each site whose update an asynchronous hub has merged."""
    return {site: int(number) for site, number in state.get(MERGED, {}).items()}


def keep_merged(state: State, updates: Sequence[Update]) -> dict[str, Weights]:
    """Return the group with each site's newest merged round, these updates' among them."""
    newest = merged_rounds(state)
    for update in updates:
        newest[update.site] = max(update.round, newest.get(update.site, 0))
    return {MERGED: {site: torch.tensor(newest[site]) for site in sorted(newest)}}


def keep_examples(state: State, updates: Sequence[Update]) -> dict[str, Weights]:
    """Return the group with the examples of the sites' first merged updates, these among them."""
    stated = {update.site: update.examples for update in updates if update.examples > 0}
    counts = {**stated, **first_examples(state)}
    return {EXAMPLES: {site: torch.tensor(counts[site]) for site in sorted(counts)}} if counts else {}


def dominance(updates: Sequence[Update], state: State) -> Mapping[str, str]:
    """Return a warning for each site that outweighs all others together by far in its first update."""
    total, known = sum(update.examples for update in updates), first_examples(state)
    return {
        update.site: f"states {update.examples} examples, all other sites of this round together "
        f"{total - update.examples}: the merge is almost its update alone"
        for update in updates
        if update.site not in known and update.examples > DOMINANT * (total - update.examples) > 0
    }


def factor_dominance(updates: Sequence[Update], rule: Rule) -> Mapping[str, str]:
    """Return a warning for each site whose number, by which the rule weights, far outweighs the others'."""
    warnings = {}
    for name in rule.multiplies_by:
        stating = [update for update in updates if name in update.scalars]
        total = sum(update.scalars[name] for update in stating)
        for update in stating:
            value = update.scalars[name]
            if value > DOMINANT * (total - value) > 0:
                warnings[update.site] = (
                    f"states {value:.4g} for '{name}', all other sites of this round together "
                    f"{total - value:.4g}: the rule weights updates by it"
                )
    return warnings


def with_notes(result: SiteResult, *notes: str) -> SiteResult:
    """Return a site's result with further notes."""
    return replace(result, notes=(*result.notes, *notes))
