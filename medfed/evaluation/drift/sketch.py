"""Sketches: for each variable, how many patients lie in each of fixed, public bins.

Bins are the same everywhere and for ever, so sketches of hospitals can be added, bit for bit the same in any
order. A patient counts once. `released` is what may leave: no bin of it stands for fewer than `min_count`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from medfed.data.histogram import Whole, suppress_small_bins
from medfed.errors import DataError

# number: bins of 0.12 % on both sides of zero.  share: bins of 2 % of the odds, 0.005 wide at one half and
# finer towards 0 and 1, where the probabilities of a rare or a sure class lie.  words: a bin for each word.
Grid = Literal["number", "share", "words"]
# From a diffusion coefficient in m2/s to cells per litre, so that no unit puts all values into one bin.
BINS_PER_DECADE, MIN_SIZE, MAX_SIZE = 2000, 1e-12, 1e15
BINS_PER_LOGIT, MAX_LOGIT = 50, 16.0

# What a variable's values are: a number, a word, or None where it is missing.
Value = float | str | None


class Variable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is counted: its grid, its words, and whether the model sees it (input) or says it (output)."""

    name: str
    kind: Literal["input", "output"]
    grid: Grid
    words: tuple[str, ...] = ()


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A variable, the patients in each bin, and those in whom it is missing; withheld: nothing is told."""

    variable: Variable
    counts: dict[int, Whole]
    missing: Whole = 0
    withheld: bool = False

    @property
    def present(self) -> int:
        """How many patients have a value."""
        return sum(self.counts.values())

    @property
    def patients(self) -> int:
        """How many patients are counted."""
        return self.present + self.missing


class Sketch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The variables of one hospital's patients, or of several hospitals'."""

    version: Literal[1] = 1
    columns: list[Column]


def bin_of(value: Value, variable: Variable) -> int | None:
    """Return the bin of a value; None if it is missing.

    Raises:
        DataError: for a word that the variable does not have.
    """
    if value is None:
        return None
    if variable.grid == "words":
        if value not in variable.words:
            raise DataError(f"'{variable.name}' holds a word that is none of the study's")
        return variable.words.index(str(value))
    number = float(value)
    if math.isnan(number):
        return None
    if variable.grid == "share":
        logit = (
            math.log(number) - math.log1p(-number)
            if 0 < number < 1
            else math.copysign(MAX_LOGIT, number - 0.5)
        )
        return math.floor(min(max(logit, -MAX_LOGIT), MAX_LOGIT) * BINS_PER_LOGIT)
    if abs(number) < MIN_SIZE:
        return 0
    size = math.log10(min(abs(number), MAX_SIZE) / MIN_SIZE)
    place = math.floor(size * BINS_PER_DECADE) + 1
    return place if number > 0 else -place


def sketch_of(variables: Sequence[Variable], patients: Iterable[Mapping[str, Value]]) -> Sketch:
    """Return the sketch of patients by their values: None is missing, a name not given counts nowhere."""
    bins: dict[str, list[int | None]] = {one.name: [] for one in variables}
    for values in patients:
        for one in variables:
            if one.name in values:
                bins[one.name].append(bin_of(values[one.name], one))
    return Sketch(columns=[_column(one, bins[one.name]) for one in variables])


def _column(variable: Variable, bins: Sequence[int | None]) -> Column:
    counts = Counter(one for one in bins if one is not None)
    return Column(variable=variable, counts=dict(sorted(counts.items())), missing=bins.count(None))


def merge(sketches: Sequence[Sketch]) -> Sketch:
    """Return the sum of sketches, the same in any order; what one of them withholds is withheld.

    Raises:
        DataError: for none, or for sketches of different variables.
    """
    if not sketches:
        raise DataError("no sketch to merge; one or more are needed")
    names = [[one.variable for one in sketch.columns] for sketch in sketches]
    if any(one != names[0] for one in names):
        raise DataError("the sketches are of different variables; they must be of one study and one medfed")
    return Sketch(
        columns=[_sum(list(columns)) for columns in zip(*(s.columns for s in sketches), strict=True)]
    )


def _sum(columns: Sequence[Column]) -> Column:
    first = columns[0]
    if any(one.withheld for one in columns):
        return Column(variable=first.variable, counts={}, withheld=True)
    counts: Counter[int] = Counter()
    for one in columns:
        counts.update(one.counts)
    missing = sum(one.missing for one in columns)
    return Column(variable=first.variable, counts=dict(sorted(counts.items())), missing=missing)


def released(sketch: Sketch, min_count: int) -> Sketch:
    """Return what may leave of a sketch: each number in it stands for at least `min_count` patients, or none.

    Small bins of numbers move into the next one towards the median. A variable of words with a small bin, or
    of which few patients lack or have a value, is withheld as a whole.
    """
    return Sketch(columns=[_released(one, min_count) for one in sketch.columns])


def _released(column: Column, min_count: int) -> Column:
    few = any(0 < number < min_count for number in (column.missing, column.present))
    words = column.variable.grid == "words"
    few_words = words and any(0 < number < min_count for number in column.counts.values())
    if column.withheld or few or few_words:
        return Column(variable=column.variable, counts={}, withheld=True)
    counts = column.counts if words else suppress_small_bins(column.counts, min_count)
    return msgspec.structs.replace(column, counts=dict(sorted(counts.items())))
