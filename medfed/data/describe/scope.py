"""Which numbers describe a study's data: the same blocks with the same public edges at every hospital.

Nothing here is taken from anybody's data: bins, words and classes are those of the study or of this file.
Another statistic is one more block here, its count in `gather.py` and its row in `table_one.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medfed.data.batch_needs import Needs
from medfed.data.describe.blocks import Block
from medfed.data.histogram import (
    BINS_PER_DECADE,
    LENGTH_BINS_PER_DECADE,
    MAX_DECADE,
    MAX_HU,
    MIN_DECADE,
    MIN_HU,
    MIN_LENGTH_DECADE,
    Grid,
)
from medfed.data.normalise.nyul import PERCENTILES
from medfed.data.settings import AnyData, Images, Table

# Ages are counted in bins of 5 years; the last one is of 85 years and more (HIPAA's Safe Harbor: no age over
# 89 is told).
AGE_BIN_YEARS, AGE_BINS = 5, 18

SEXES = ("female", "male", "other")
_SEX_WORDS = {"f": 0, "female": 0, "w": 0, "woman": 0, "m": 1, "male": 1, "man": 1, "o": 2, "other": 2}

# Scanners by words in their names; the name itself never leaves.
SCANNERS = (
    "Siemens",
    "GE",
    "Philips",
    "Canon (Toshiba)",
    "Fujifilm (Hitachi)",
    "United Imaging",
    "Hologic",
    "another",
)
_SCANNER_WORDS = {
    "siemens": 0,
    "ge medical": 1,
    "ge healthcare": 1,
    "general electric": 1,
    "philips": 2,
    "toshiba": 3,
    "canon": 3,
    "hitachi": 4,
    "fujifilm": 4,
    "united imaging": 5,
    "uih": 5,
    "hologic": 6,
}

AXES = ("x", "y", "z")
GEOMETRY = ("spacing", "size", "extent")
# Lengths up to 10^5: those of `histogram.length_bin`, beginning with 0.
MAX_LENGTH_DECADE = 5
LENGTH_BINS = (MAX_LENGTH_DECADE - MIN_LENGTH_DECADE) * LENGTH_BINS_PER_DECADE + 1

# Volumes of structures: 20 bins per decade, 12 % wide, from 10^-3 to 10^5 ml.
VOLUME_BINS_PER_DECADE, MIN_VOLUME_DECADE, VOLUME_BINS = 20, -3, 161

# The largest number of a bin of intensities on the grid `relative`.
_LAST_RELATIVE = (MAX_DECADE - MIN_DECADE) * BINS_PER_DECADE + 1


@dataclass(frozen=True)
class Scope:
    """What of a study decides which numbers describe its data.

    classes: the task's, the background included; none for a task without classes.  grid: the bins of the
    intensity histograms.
    """

    data: AnyData
    needs: Needs
    classes: tuple[str, ...] = ()
    grid: Grid = "relative"

    @property
    def table(self) -> Table | None:
        """The columns that are described: a study's own, or those beside its images."""
        if isinstance(self.data, Table):
            return self.data
        beside = self.data.table if isinstance(self.data, Images) else None
        return None if beside is None else beside.as_table

    @property
    def images(self) -> Images | None:
        """The settings of the images that are described, or None."""
        return self.data if isinstance(self.data, Images) else None

    @property
    def structures(self) -> tuple[str, ...]:
        """The classes that labels outline, without the background."""
        return self.classes[1:] if self.images is not None and self.needs == "segment" else ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The classes of which each patient is one."""
        return self.classes if self.needs in ("classify", "table") else ()


def blocks_of(scope: Scope) -> tuple[Block, ...]:
    """Return the blocks of numbers that describe a study's data, in the order in which they are sent."""
    return (*_patients(scope), *_images(scope), *_columns(scope))


def _patients(scope: Scope) -> Iterator[Block]:
    yield Block("hospitals", 2, "flags")  # answered; has enough patients
    yield Block("patients", 1, "counts")
    yield Block("cases", 1, "counts")
    yield Block("age", AGE_BINS, "patients")
    yield Block("age.known", 3, "patients")  # known, missing, withheld
    yield Block("age.counted", 1, "patients")
    yield Block("age.sums", 2, "counts", 2)  # of tenths of years, and of their squares
    yield Block("sex", len(SEXES) + 2, "patients")  # the last two are missing and withheld
    yield Block("scanner", len(SCANNERS) + 2, "patients")
    if scope.targets:
        yield Block("target", len(scope.targets) + 2, "patients")
    if scope.needs == "survival":
        yield Block("event", 4, "patients")  # censored, event, missing, withheld


def _images(scope: Scope) -> Iterator[Block]:
    images = scope.images
    if images is None:
        return
    for what in GEOMETRY:
        for axis in AXES:
            yield Block(f"{what}.{axis}", LENGTH_BINS, "cases")
    for number in range(images.inputs):
        yield Block(f"intensity.{number}", intensity_bins(scope.grid), "counts", 2)
    yield Block("intensity.withheld", 1, "counts")
    yield Block("intensity.total", images.inputs, "sums", 3)
    yield Block("intensity.squares", images.inputs, "counts", 4)
    yield Block("intensity.counted", images.inputs, "counts", 2)
    yield Block("intensity.landmarks", images.inputs * len(PERCENTILES), "sums", 2)
    for number, _ in enumerate(scope.structures):
        yield Block(f"structure.{number}", 3, "patients")  # present, absent, withheld
        if images.spatial_dims == 3:
            yield Block(f"volume.{number}", VOLUME_BINS, "patients")


def _columns(scope: Scope) -> Iterator[Block]:
    table = scope.table
    if table is None:
        return
    numbers = len(table.numbers)
    yield Block("columns.counted", numbers, "counts")
    # As `harmonise.TableSums` has them: totals, and squared distances from the hospital's own mean. Digits
    # are enough for the largest number that a table may hold.
    yield Block("columns.total", numbers, "sums", 6)
    yield Block("columns.within", numbers, "counts", 10)
    # The sums of values in fixed point and of their squares, exact: of a large mean and a small spread, the
    # difference of two floats would lose all digits.
    yield Block("columns.exact", numbers, "sums", 6)
    yield Block("columns.squares", numbers, "counts", 10)
    for number in range(numbers):
        yield Block(f"known.{number}", 3, "patients")  # known, missing, withheld
    for number, words in enumerate(table.categorical.values()):
        yield Block(f"words.{number}", len(words) + 2, "patients")


def intensity_bins(grid: Grid) -> int:
    """Return how many bins a histogram of intensities has."""
    return MAX_HU - MIN_HU + 1 if grid == "hu" else 2 * _LAST_RELATIVE + 1


def first_intensity_bin(grid: Grid) -> int:
    """Return the number of the first bin of `histogram.intensity_bins`."""
    return MIN_HU if grid == "hu" else -_LAST_RELATIVE


def age_bin(years: float) -> int:
    """Return the bin of an age."""
    return min(max(int(years // AGE_BIN_YEARS), 0), AGE_BINS - 1)


def sex_group(word: str) -> int:
    """Return the group of a sex as a hospital writes it; the last one is missing."""
    return _SEX_WORDS.get(word.strip().lower(), len(SEXES) if not word.strip() else len(SEXES) - 1)


def scanner_group(name: str) -> int:
    """Return the group of a scanner's name; the last one is missing."""
    lower = name.strip().lower()
    if not lower:
        return len(SCANNERS)
    known = [group for word, group in _SCANNER_WORDS.items() if word in lower]
    return known[0] if known else (1 if lower == "ge" or lower.startswith("ge ") else len(SCANNERS) - 1)


def volume_bin(millilitres: float) -> int:
    """Return the bin of a structure's volume."""
    number = round((float(np.log10(millilitres)) - MIN_VOLUME_DECADE) * VOLUME_BINS_PER_DECADE)
    return min(max(number, 0), VOLUME_BINS - 1)


def bin_to_volume(number: int) -> float:
    """Return the volume in the middle of a bin, in ml."""
    return float(10 ** (number / VOLUME_BINS_PER_DECADE + MIN_VOLUME_DECADE))
