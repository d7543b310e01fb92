"""Table 1 of a study: what its hospitals' patients, images and columns are, from sums that hospitals gave.

A row is a variable, its level if it has levels, and one text per hospital (where the hub sees single ones)
and over all of them. Nothing is computed that a sum does not hold: medians and quartiles are those of
histograms, exact to a bin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from medfed.data import histogram
from medfed.data.describe.blocks import Values
from medfed.data.describe.gather import AGE_STEPS
from medfed.data.describe.scope import (
    AGE_BIN_YEARS,
    AXES,
    GEOMETRY,
    SCANNERS,
    SEXES,
    Scope,
    bin_to_volume,
    first_intensity_bin,
)
from medfed.data.fingerprint import FIXED_POINT as INTENSITY_STEPS
from medfed.data.harmonise import FIXED_POINT
from medfed.errors import DataError

# What stands where nothing was counted.
NONE = "-"

# What stands where a level has no patients that were counted, while some of other levels were withheld.
ZERO_OR_WITHHELD = "0 or withheld"

# What stands before a sum of hospitals' counts of which some were withheld.
AT_LEAST = "at least "

# The groups that every distribution ends with.
MISSING, WITHHELD = "missing", "withheld (small groups)"

_UNITS = {"spacing": "mm", "size": "voxels", "extent": "mm"}


@dataclass(frozen=True)
class Line:
    """One line of the table: what it says of each hospital, and of all of them."""

    variable: str
    level: str
    overall: str
    hospitals: Mapping[str, str]


def table_one(
    scope: Scope, overall: Values, hospitals: Mapping[str, Values], *, noised: bool = False
) -> list[Line]:
    """Return the table's lines; `hospitals` is empty where only the sum can be read.

    What is `noised` was withheld after the sum; else each hospital withheld its own, and a sum is a least.
    """
    partial_sums = not noised and overall["hospitals"][1] > 1
    merged = list(_cells(scope, overall, AT_LEAST if partial_sums else ""))
    single = {site: list(_cells(scope, values, "")) for site, values in hospitals.items()}
    lines = [
        Line(variable, level, text, {site: cells[place][2] for site, cells in single.items()})
        for place, (variable, level, text) in enumerate(merged)
    ]
    return [line for line in lines if not _is_idle(line)]


def _is_idle(line: Line) -> bool:
    """Whether a line says of a level that may be absent that nobody has it."""
    may_be_absent = line.variable == "scanner" or line.level in (MISSING, WITHHELD, SEXES[-1])
    said = (line.overall, *line.hospitals.values())
    return may_be_absent and all(text in (NONE, ZERO_OR_WITHHELD) or text.startswith("0 (") for text in said)


Cell = tuple[str, str, str]


def _cells(scope: Scope, values: Values, least: str) -> Iterator[Cell]:
    """Yield variable, level and text of each line, always the same lines for one scope.

    `least` stands before a count of a distribution of which something was withheld.
    """
    patients = values["patients"][0]
    yield "hospitals", "", str(values["hospitals"][0])
    yield "hospitals", "with enough patients", str(values["hospitals"][1])
    yield "patients (training)", "", _count(patients)
    yield "cases (training)", "", _count(values["cases"][0])
    yield from _people(values, least)
    if scope.targets:
        levels = (*scope.targets, MISSING, WITHHELD)
        yield from _distribution("class", levels, values["target"], least)
    if scope.needs == "survival":
        yield from _distribution("event", ("censored", "event", MISSING, WITHHELD), values["event"], least)
    yield from _images(scope, values, least)
    yield from _columns(scope, values, least)


def _people(values: Values, least: str) -> Iterator[Cell]:
    count, (total, squares) = values["age.counted"][0], values["age.sums"]
    yield "age, years", "mean (SD)", _mean_sd(count, total, squares, AGE_STEPS, AGE_STEPS**2)
    middles = {number: (number + 0.5) * AGE_BIN_YEARS for number, _ in enumerate(values["age"])}
    yield "age, years", f"median [IQR], bins of {AGE_BIN_YEARS}", _quartiles(_sparse(values["age"]), middles)
    yield "age, years", MISSING, _missing(values["age.known"])
    yield from _distribution("sex", (*SEXES, MISSING, WITHHELD), values["sex"], least)
    yield from _distribution("scanner", (*SCANNERS, MISSING, WITHHELD), values["scanner"], least)


def _images(scope: Scope, values: Values, least: str) -> Iterator[Cell]:
    images = scope.images
    if images is None:
        return
    for what in GEOMETRY:
        for axis in AXES:
            counts = _sparse(values[f"{what}.{axis}"])
            lengths = {number: histogram.bin_to_length(number) for number in counts}
            yield f"{what} {axis}, {_UNITS[what]}", "median [IQR]", _quartiles(counts, lengths)
    names = images.channel_names or tuple(f"channel {number}" for number in range(images.inputs))
    for number, name in enumerate(names):
        of = f" of {name}" if len(names) > 1 or images.channel_names else ""
        yield from _intensities(scope, values, number, f"intensity{of}, in structures")
    for number, name in enumerate(scope.structures):
        levels = ("present", "absent", WITHHELD)
        yield from _distribution(f"structure {name}", levels, values[f"structure.{number}"], least)
        if (bins := values.get(f"volume.{number}")) is not None:
            counts = _sparse(bins)
            volumes = {one: bin_to_volume(one) for one in counts}
            yield f"volume of {name}, ml", "median [IQR]", _quartiles(counts, volumes)


def _intensities(scope: Scope, values: Values, number: int, name: str) -> Iterator[Cell]:
    count, total = values["intensity.counted"][number], values["intensity.total"][number]
    squares, steps = values["intensity.squares"][number], INTENSITY_STEPS
    yield name, "mean (SD)", _mean_sd(count, total, squares, steps, steps)
    first = first_intensity_bin(scope.grid)
    counts = {first + one: n for one, n in _sparse(values[f"intensity.{number}"]).items()}
    middles = {one: histogram.bin_to_intensity(one, scope.grid) for one in counts}
    yield name, "median [IQR]", _quartiles(counts, middles)


def _columns(scope: Scope, values: Values, least: str) -> Iterator[Cell]:
    table = scope.table
    if table is None:
        return
    for number, name in enumerate(table.numbers):
        count, total = values["columns.counted"][number], values["columns.exact"][number]
        squares = values["columns.squares"][number]
        yield name, "mean (SD)", _mean_sd(count, total, squares, FIXED_POINT, FIXED_POINT**2)
        yield name, MISSING, _missing(values[f"known.{number}"])
    for number, (name, words) in enumerate(table.categorical.items()):
        yield from _distribution(name, (*words, MISSING, WITHHELD), values[f"words.{number}"], least)


def _distribution(variable: str, levels: Sequence[str], counts: Sequence[int], least: str) -> Iterator[Cell]:
    """Yield how many patients are of each level; the last level counts those of groups that were withheld."""
    known, withheld = sum(counts), counts[-1]
    for level, count in zip(levels, counts, strict=True):
        hidden = withheld and level != WITHHELD
        if not known:
            yield variable, level, NONE
        elif hidden and not count:
            yield variable, level, ZERO_OR_WITHHELD
        else:
            yield variable, level, f"{least if hidden else ''}{count} ({count / known:.1%})"


def _missing(counts: Sequence[int]) -> str:
    """Return how many patients have no value, of [known, missing, withheld]."""
    known, missing, withheld = counts
    if not known + missing + withheld:
        return NONE
    return str(missing) if not withheld else f"{missing}, and {withheld} patients withheld"


def _count(number: int) -> str:
    return str(number) if number else NONE


def _sparse(counts: Sequence[int]) -> dict[int, int]:
    return {number: count for number, count in enumerate(counts) if count}


def _quartiles(counts: Mapping[int, int], values: Mapping[int, float]) -> str:
    if not counts:
        return NONE
    low, middle, high = (values[histogram.quantile(counts, share)] for share in (0.25, 0.5, 0.75))
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def _mean_sd(count: int, total: int, squares: int, steps: int, square_steps: int) -> str:
    """Return mean and sample deviation, from whole sums, so that no digits cancel.

    `total` is in multiples of 1/steps, `squares` in those of 1/square_steps.
    """
    if count < 2:
        return NONE
    mean = total / steps / count
    # (n S2 - S1^2) / (n (n - 1)), over the common denominator.
    spread = squares * steps**2 * count - total**2 * square_steps
    variance = max(spread, 0) / (steps**2 * square_steps * count * (count - 1))
    return f"{mean:.4g} ({variance**0.5:.4g})"


def require_described(values: Values) -> None:
    """Check that some hospital has enough patients to be described.

    Raises:
        DataError: if every hospital answered, and none has.
    """
    answered, described = values["hospitals"]
    if not described:
        raise DataError(
            f"none of {answered} hospitals has as many training patients as a number must be of; there is no "
            "Table 1 and no plan: give the settings in the study instead"
        )
