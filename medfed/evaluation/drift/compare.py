"""Compare a new sketch with a reference: tests for whether, an index for how much, and when that is an alarm.

- **Whether**: for numbers the two-sample Kolmogorov-Smirnov test on the bins (ties make it conservative); for
  words and for missing values Fisher's exact test, for several words with Bonferroni's correction. The tests
  of one look are corrected by Holm, and the level of a look is `alpha / looks`: if nothing changes, the
  chance of any false alarm in `looks` looks is at most `alpha`, however the looks depend on each other.
- **How much**: the population stability index (PSI) over at most ten groups of the reference's patients,
  half a patient added to each; and the chance that a new patient's value is above a reference patient's.
- **Alarm**: the corrected p is at most the look's level, and the PSI at least `MIN_PSI`: with many patients a
  shift that matters to nobody is significant, too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from medfed.errors import DataError
from medfed.evaluation.drift.sketch import Column, Sketch

# Below this a change is small, by the usual reading of the PSI (0.1 and 0.25).
MIN_PSI = 0.1
# The most groups of a PSI, and the fewest reference patients of a group.
MAX_GROUPS, MIN_IN_GROUP = 10, 5
# Up to so many patients the exact distribution of the KS statistic is used.
MAX_EXACT = 500
# If the reference's middle half spans fewer bins than this, the bins are too wide to see a small shift.
MIN_BINS = 4

HOPELESS = "too few patients: not even a complete change would be an alarm"

State = Literal["alarm", "change", "no change", "not compared"]


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """The chance of any false alarm, over how many looks, and the fewest patients that are compared."""

    alpha: float = 0.05
    looks: int = 12
    min_patients: int = 5

    @property
    def of_look(self) -> float:
        """The level of one look."""
        return self.alpha / self.looks


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One variable, or the share of patients who lack it (`what` is "missing"), in both sketches.

    above: the chance that a new patient's value is above a reference one's, ties counted half.  p_holm: the p
    corrected over the tests of this look.  groups: for a plot, (from, to, share before, share now).
    """

    name: str
    kind: str
    what: Literal["values", "missing"]
    reference: int
    look: int
    state: State
    psi: float | None = None
    above: float | None = None
    p: float | None = None
    p_holm: float | None = None
    note: str = ""


def compare(reference: Sketch, look: Sketch, level: Level) -> list[Compared]:
    """Return each variable's comparison, in the sketches' order.

    Raises:
        DataError: if the sketches are of different variables.
    """
    if [one.variable for one in reference.columns] != [one.variable for one in look.columns]:
        raise DataError(
            "the reference is of other variables than these data: it is of another study, or of another "
            "medfed; make a new one (--reference)"
        )
    tested = [
        one
        for before, now in zip(reference.columns, look.columns, strict=True)
        for one in _tests(before, now, level)
    ]
    tests = sum(one.p is not None for one in tested)
    tested = [_unless_hopeless(one, level.of_look / max(tests, 1)) for one in tested]
    corrected = iter(holm([one.p for one in tested if one.p is not None]))
    return [one if one.p is None else _judged(one, next(corrected), level) for one in tested]


def _unless_hopeless(one: Compared, threshold: float) -> Compared:
    """Return a comparison, or that it cannot be made: that even no overlap at all would not be an alarm."""
    if one.p is None or 2 / math.comb(one.reference + one.look, one.look) <= threshold:
        return one
    return msgspec.structs.replace(one, state="not compared", psi=None, above=None, p=None, note=HOPELESS)


def _judged(one: Compared, p_holm: float, level: Level) -> Compared:
    significant = p_holm <= level.of_look
    state: State = "no change"
    if significant:
        state = "alarm" if (one.psi or 0.0) >= MIN_PSI else "change"
    return msgspec.structs.replace(one, p_holm=p_holm, state=state)


def _tests(before: Column, now: Column, level: Level) -> list[Compared]:
    """Return the comparison of a variable's values, and of who lacks it if anybody does; p as it is."""
    about = {"name": before.variable.name, "kind": before.variable.kind}
    found = []
    if before.missing or now.missing:
        table = [[before.missing, before.present], [now.missing, now.present]]
        found.append(_counted("missing", table, before.patients, now.patients, level, about))
    if before.variable.grid == "words":
        numbers = range(len(before.variable.words))
        table = [[one.counts.get(number, 0) for number in numbers] for one in (before, now)]
        found.append(_counted("values", table, before.present, now.present, level, about))
    else:
        found.append(_numbers(before, now, level, about))
    if before.withheld or now.withheld:
        why = "withheld by a hospital whose sketch is in the reference"
        return [msgspec.structs.replace(_not_compared("values", 0, 0, about), note=why)]
    return found


def _not_compared(
    what: Literal["values", "missing"], before: int, now: int, about: dict[str, str]
) -> Compared:
    note = "too few patients to compare"
    return Compared(**about, what=what, reference=before, look=now, state="not compared", note=note)  # type: ignore[arg-type]


def _is_few(before: int, now: int, level: Level) -> bool:
    return min(before, now) < level.min_patients


def _counted(
    what: Literal["values", "missing"],
    table: Sequence[Sequence[int]],
    before: int,
    now: int,
    level: Level,
    about: dict[str, str],
) -> Compared:
    """Compare counts in categories: `table` is (2, categories), of the reference and of now."""
    if _is_few(before, now, level):
        return _not_compared(what, before, now, about)
    from scipy.stats import fisher_exact

    counts = np.array(table)
    ps = [float(fisher_exact([[a, before - a], [b, now - b]]).pvalue) for a, b in counts.T if a or b]
    tests = 1 if len(counts.T) == 2 else len(ps)
    return Compared(
        **about,  # type: ignore[arg-type]
        what=what,
        reference=before,
        look=now,
        state="no change",
        psi=psi(counts[0], counts[1]),
        p=min(1.0, tests * min(ps, default=1.0)),
    )


def _numbers(before: Column, now: Column, level: Level, about: dict[str, str]) -> Compared:
    if _is_few(before.present, now.present, level):
        return _not_compared("values", before.present, now.present, about)
    from scipy.stats import ks_2samp

    old, new = _expanded(before), _expanded(now)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an exact p that overflows is computed otherwise
        method = "exact" if max(len(old), len(new)) <= MAX_EXACT else "asymp"
        p = float(ks_2samp(old, new, method=method).pvalue)
    edges = group_edges(old)
    below, alike = np.searchsorted(np.sort(old), new, "left"), np.searchsorted(np.sort(old), new, "right")
    low, high = np.quantile(old, [0.25, 0.75])
    coarse = before.variable.grid == "number" and 0 < high - low < MIN_BINS
    return Compared(
        **about,  # type: ignore[arg-type]
        what="values",
        reference=len(old),
        look=len(new),
        state="no change",
        psi=psi(_in_groups(old, edges), _in_groups(new, edges)),
        above=float((below + alike).mean() / 2 / len(old)),
        p=min(p, 1.0),
        note="its values lie so close together that a small shift goes unseen" if coarse else "",
    )


def _expanded(column: Column) -> NDArray[np.int64]:
    return np.repeat(np.array(list(column.counts), np.int64), list(column.counts.values()))


def group_edges(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the edges between groups of a reference: quantiles, so that each has enough patients.

    Equal values are never parted, so there may be fewer groups.
    """
    groups = max(2, min(MAX_GROUPS, len(values) // MIN_IN_GROUP))
    edges = np.quantile(values, np.arange(1, groups) / groups, method="lower") + 0.5
    # An edge above all values would part nothing from nothing, unless all are alike: then above and below.
    inside = np.unique(edges[edges < values.max()])
    return inside if inside.size else np.array([values.min() - 0.5, values.max() + 0.5])


def _in_groups(values: NDArray[np.int64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)


def psi(before: Sequence[int] | NDArray[np.int64], now: Sequence[int] | NDArray[np.int64]) -> float:
    """Return the population stability index of two rows of counts, half a patient added to each count.

    >>> round(psi([50, 50], [50, 50]), 6)
    0.0
    """
    old, new = np.asarray(before, np.float64) + 0.5, np.asarray(now, np.float64) + 0.5
    a, b = old / old.sum(), new / new.sum()
    return float(((b - a) * np.log(b / a)).sum())


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values corrected by Holm (1979) over these tests, in the given order."""
    result, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        result[place] = largest
    return result


def alarms(compared: Sequence[Compared]) -> list[Compared]:
    """Return the comparisons that are alarms."""
    return [one for one in compared if one.state == "alarm"]
