"""The allow-list of what may leave a hospital: what is not on it is refused at the site.

The list comes from the model that the hub sent (names and shapes of its tensors) and from what the parts of a
study declare: local methods and privacy mechanisms declare groups of tensors (`sends`), privacy mechanisms
and tasks the names of their numbers (`scalars`, `scores`). `pipeline.factory.egress_of` makes it for a study;
a LightningModule outside a study declares its names in an attribute `scores`. A metric that is not declared
stays in the hospital, which is told: its name could be a patient's. A hospital can withhold scores besides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import isfinite

from medfed.errors import EgressError, StudyError
from medfed.runs.rounds import WITHHELD
from medfed.wire.update import Update
from medfed.wire.weights import Weights

# The numbers that the federated callback itself sends; the last is the epsilon spent by the ledger.
TRAINING = frozenset({"train/steps", "train/seconds", "train/loss", "train/rate", "privacy/epsilon"})

# The results of an evaluation over a group of patients:
# row/<split>/<model>/<metric>/<structure>/<group>/<field>, where the field `n` is the number of patients.
# Values of an attribute (a scanner, a sex) are in the group's name.
ROWS = "row/"
_ROW = re.compile(r"row/[^/]{1,20}/[^/]{1,40}/[^/]{1,60}/[^/]{0,80}/[^/]{0,120}/(value|low|high|n)")

# What any module may send without declaring it: what the callback sends itself, and the usual loss.
UNDECLARED_OK = TRAINING | {"val/loss", "val/personal/loss"}

# The names that a module may declare in `scores`, and how many.
_SCORE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_/ .-]{0,79}")
MAX_SCORES = 100

# The first parts of names that may be repeated where an undeclared name is reported.
_USUAL = ("train", "val", "test", "privacy")


@dataclass(frozen=True)
class Egress:
    """What may leave this site besides the model's own tensors.

    scalars: the names of numbers.
    groups: the groups of tensors, each with tensors of the model's names and shapes.
    sealed: the groups whose tensors a privacy mechanism has made unreadable, so that their shapes say
    nothing; `round.send_update` adds the study's mechanism's own here.
    smallest_group: the fewest patients of a group of whom a result may leave (`row/...`,
    evaluation/row_transport.py); None where no result of an evaluation may.
    withheld: prefixes of numbers that this hospital keeps although the study would send them.
    few: the numbers that it keeps as they are of fewer than `smallest_group` of its patients.
    validated: the hospital's validation patients; None where scores beside counts are not held to them.
    """

    scalars: frozenset[str] = UNDECLARED_OK
    groups: tuple[str, ...] = ()
    sealed: tuple[str, ...] = ()
    smallest_group: int | None = None
    withheld: tuple[str, ...] = ()
    validated: int | None = None
    few: frozenset[str] = frozenset()

    def keeps(self, name: str) -> bool:
        """Return whether a number stays that the study would send."""
        return name in self.few or name.startswith(self.withheld)


def enforce(update: Update, weights: Weights, egress: Egress) -> Update:
    """Return the update without what this hospital withholds; the rest must be on its list.

    Withheld results of an evaluation are counted in `WITHHELD`.

    Raises:
        EgressError: naming the site, the round and the first tensor, group or number that is not.
    """
    who = f"update of site '{update.site}' for round {update.round}"
    _check_tensors(who, "", update.delta, weights)
    for group, tensors in update.groups.items():
        if group in egress.groups:
            _check_tensors(who, f" of group '{group}'", tensors, weights)
        elif group not in egress.sealed:
            raise EgressError(
                f"{who}: the group '{group[:40]}' is not declared to leave; a local method or privacy "
                "mechanism declares its groups in `sends`. Nothing was sent"
            )
    scalars = {name: value for name, value in update.scalars.items() if not egress.keeps(name)}
    few = _of_few(scalars, egress)
    scalars = {name: value for name, value in scalars.items() if name not in few}
    rows = {name: value for name, value in scalars.items() if name.startswith(ROWS)}
    numbers = {name: value for name, value in scalars.items() if name not in rows}
    _check_numbers(who, numbers, egress.scalars)
    _check_rows(who, rows)
    small = _too_small(rows, egress.smallest_group)
    if small:
        numbers[WITHHELD] = numbers.get(WITHHELD, 0.0) + sum(name.endswith("/value") for name in small)
    return replace(update, scalars={**numbers, **{name: rows[name] for name in rows if name not in small}})


# How many validation cases of a segmentation have an empty mask: their Dice is 0, or there is none.
_COUNTS = ("both_empty", "false_positives", "missed")


def _of_few(scalars: Mapping[str, float], egress: Egress) -> set[str]:
    """Return the scores of validation that are of fewer than `smallest_group` patients beside the counts.

    With eleven of twelve missed, twelve times the mean Dice is the twelfth patient's: then the counts stay. A
    mean over the few who have the structure stays too. Counts are of cases, so they bound those of patients.
    """
    validated, least = egress.validated, egress.smallest_group
    if validated is None or least is None:
        return set()
    few: set[str] = set()
    for prefix in ("val/", "val/personal/"):
        counts = [scalars.get(f"{prefix}{name}", 0.0) for name in _COUNTS]
        if validated - sum(counts) < least:
            few |= {f"{prefix}{name}" for name in _COUNTS}
        # Of several structures the counts are sums over them, and say less of each.
        several = any(name.startswith(f"{prefix}dice/") for name in scalars)
        if not several and validated - counts[0] < least:
            few.add(f"{prefix}dice")
    return few & scalars.keys()


def _check_tensors(who: str, where: str, tensors: Weights, weights: Weights) -> None:
    for name in tensors:
        if name not in weights:
            raise EgressError(
                f"{who}: '{name[:80]}'{where} is not a tensor of the study's model. Nothing was sent"
            )
        # A lazy difference would be computed for its shape alone; `check` has held it to the model already.
        shape = getattr(tensors, "minuend", tensors)[name].shape
        if shape != weights[name].shape:
            raise EgressError(
                f"{who}: '{name}'{where} has shape {tuple(shape)}, declared is {tuple(weights[name].shape)}. "
                "Nothing was sent"
            )


def _check_numbers(who: str, scalars: Mapping[str, float], names: Collection[str]) -> None:
    for name, value in scalars.items():
        if name not in names:
            # This error's text may leave, and the name may be what must not: it is not repeated.
            raise EgressError(
                f"{who}: a number is named with {len(name)} characters that are not declared to leave, "
                f"expected one of {', '.join(sorted(names))}. "
                "A task or module declares its numbers in `scores`. Nothing was sent"
            )
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not isfinite(value):
            raise EgressError(
                f"{who}: '{name}' is a {type(value).__name__}, only finite numbers leave. Nothing was sent"
            )


def with_declared_scores(egress: Egress, module: object, who: str) -> Egress:
    """Return what may leave, with the scores that a module declares.

    Raises:
        StudyError: see `declared_scores`.
    """
    return replace(egress, scalars=egress.scalars | declared_scores(module, who))


def declared_scores(module: object, who: str) -> frozenset[str]:
    """Return the names of metrics that a module declares to leave, in its attribute `scores`.

    Raises:
        StudyError: naming `who`, if `scores` is not a list of short names.
    """
    declared = getattr(module, "scores", ())
    valid = isinstance(declared, (tuple, list, set, frozenset)) and all(
        isinstance(name, str) and _SCORE.fullmatch(name) and not name.startswith(ROWS) for name in declared
    )
    if not valid or len(declared) > MAX_SCORES:
        raise StudyError(
            f"{who}: the module's `scores` is not a list of at most {MAX_SCORES} names of metrics such as "
            "'val/dice', each of at most 80 letters, digits, spaces, '_', '/', '.' and '-'; correct it"
        )
    return with_personal(declared)


def with_personal(scores: Collection[str]) -> frozenset[str]:
    """Return the names of scores, and of the same scores of a hospital's personalised model."""
    return frozenset(scores) | {f"val/personal/{name.removeprefix('val/')}" for name in scores}


def keep_undeclared(scalars: Mapping[str, float], names: Collection[str]) -> tuple[dict[str, float], str]:
    """Return the numbers whose names are declared, and a sentence on the others, which stay; '' if none does.

    The sentence holds no undeclared name, only how many there are under each usual first part.
    """
    kept = [name for name in scalars if name not in names]
    if not kept:
        return dict(scalars), ""
    first = [name.replace("_", "/").partition("/")[0] for name in kept]
    under = {part: sum(one == part for one in first) for part in _USUAL if part in first}
    listed = [f"{count} under '{part}'" for part, count in under.items()]
    others = len(kept) - sum(under.values())
    listed += [f"{others} under other names"] if others else []
    sentence = (
        f"{len(kept)} logged metrics stay in this hospital, because neither the module nor the study "
        f"declares them: {', '.join(listed)}. List the names that may leave in the module's `scores`"
    )
    return {name: value for name, value in scalars.items() if name in names}, sentence


def _check_rows(who: str, scalars: Mapping[str, float]) -> None:
    """Check the form of a hospital's results of an evaluation."""
    for name, value in scalars.items():
        if not _ROW.fullmatch(name) or not isinstance(value, (int, float)) or not isfinite(value):
            raise EgressError(
                f"{who}: a result of an evaluation has another form than medfed's. Nothing was sent"
            )


def _too_small(scalars: Mapping[str, float], smallest: int | None) -> set[str]:
    """Return the names of the results that stay: over fewer than `smallest` patients, or all if it is None.

    What may not leave stays, and the rest leaves: a study is not ended by it after its last round.
    """
    if smallest is None:
        return {*scalars}
    return {name for name in scalars if scalars.get(f"{name.rpartition('/')[0]}/n", 0) < smallest}
