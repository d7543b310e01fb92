"""What nnU-Net would compute of all cases in one place, from sums that hospitals can
add: the federation's fingerprint.

`fingerprint` makes a hospital's own, `merge` adds them, `proposal` turns the sum into the `data` section of a
study. A fingerprint holds counts and whole numbers only: a sum of whole numbers is the same in whatever order
sites arrive, bit for bit. Percentiles come from histograms with fixed edges; percentiles of each site's
percentiles would be off by tens of HU, since no average of percentiles is a percentile.

What leaves a hospital this way is in `Fingerprint` and nowhere else. Fewer than `min_count` patients, or voxels
in a histogram's bin, are withheld: the whole, a class, or moved into the next bin towards the median.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from medfed.data.case import Case
from medfed.data.index import Index
from medfed.data.normalise.nyul import PERCENTILES, percentiles
from medfed.data.settings import Images
from medfed.errors import DataError, LabelError

if TYPE_CHECKING:
    from medfed.data.volume import Volume

Whole = Annotated[int, Meta(ge=0)]
Grid = Literal["hu", "relative"]
Counts = dict[int, Whole]

# HU bins are 1 wide and centred on whole numbers; what lies beyond counts in the first or last.
LEAST_HU, MOST_HU = -1024, 3071
# Scanners' own units span decades: bins of 1/200 of a decade, 1.2 % wide, from 1e-3 to 1e7, on both
# sides of zero.
BINS_A_DECADE, LEAST_DECADE, MOST_DECADE = 200, -3, 7
# Spacings and sizes: bins of 1/400 of a decade, 0.6 % wide, from 1e-3.
SIZES_A_DECADE, LEAST_SIZE_DECADE = 400, -3
# Sums of intensities are kept as whole numbers of this part.
PART = 1024
# More voxels of a case's foreground than this are counted one in so many: a body of 50 million
# would add nothing.
MOST_COUNTED = 4_000_000


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sums over a hospital's training cases, or over several hospitals'.

    grid: of the intensity histograms: `hu` has a bin a HU, `relative` a bin every 1.2 %.  classes: how many
    classes labels have, 0 included.  sites, patients, cases: how many are in it.  withheld: counts that a
    site kept back, as too few patients stood behind them.  spacing, size, extent: for the axes right, front,
    up: cases a bin, of mm, of voxels, of mm.  voxels, holders: of each class, its voxels and the cases that
    have it, over the sites that told.
    intensity: a histogram of the foreground's voxels for each channel.  total, squares: of its
    intensities, in parts of 1/1024.  landmarks: for each channel, sums of Nyul's landmarks in parts
    of 1/1048576, over `cases`.
    """

    version: Literal[1] = 1
    grid: Grid
    classes: Whole
    channels: Annotated[int, Meta(ge=1)]
    sites: Whole
    patients: Whole
    cases: Whole
    withheld: Whole
    spacing: tuple[Counts, Counts, Counts]
    size: tuple[Counts, Counts, Counts]
    extent: tuple[Counts, Counts, Counts]
    voxels: Counts
    holders: Counts
    intensity: tuple[Counts, ...]
    total: tuple[int, ...]
    squares: tuple[Whole, ...]
    counted: tuple[Whole, ...]
    landmarks: tuple[tuple[int, ...], ...]

    def spacing_mm(self, share: float = 0.5) -> tuple[float, float, float]:
        """Return the spacing that this share of cases lie at or below, along right, front and up."""
        x, y, z = (size_of(quantile(counts, share)) for counts in self.spacing)
        return x, y, z

    def size_voxels(self) -> tuple[float, float, float]:
        """Return the median size along right, front and up."""
        x, y, z = (size_of(quantile(counts, 0.5)) for counts in self.size)
        return x, y, z

    def extent_mm(self) -> tuple[float, float, float]:
        """Return the median extent along right, front and up."""
        x, y, z = (size_of(quantile(counts, 0.5)) for counts in self.extent)
        return x, y, z

    def class_shares(self) -> dict[int, float]:
        """Return each class's share of the labelled images' voxels, over the sites that told it."""
        whole = sum(self.voxels.values())
        return {number: count / whole for number, count in sorted(self.voxels.items())} if whole else {}

    def percentile(self, percent: float, channel: int = 0) -> float:
        """Return a percentile of the foreground's intensities, right to half a bin."""
        return value_of(quantile(self.intensity[channel], percent / 100), self.grid)

    def mean(self, channel: int = 0) -> float:
        """Return the mean of the foreground's intensities."""
        return self.total[channel] / PART / self._some(channel)

    def sd(self, channel: int = 0) -> float:
        """Return the standard deviation of the foreground's intensities."""
        # Whole numbers until the last step: the difference of two large floats would lose its digits.
        number = self._some(channel)
        spread = self.squares[channel] * PART * number - self.total[channel] ** 2
        return float(max(spread, 0) ** 0.5 / (PART * number))

    def nyul(self, channel: int = 0) -> tuple[float, ...]:
        """Return the mean place of each of Nyul's landmarks between -1 and 1."""
        self._some(channel)
        return tuple(total / PART**2 / self.cases for total in self.landmarks[channel])

    def _some(self, channel: int) -> int:
        if not self.counted[channel]:
            raise DataError("the fingerprint counts no foreground voxel; it needs cases with labels")
        return self.counted[channel]


# ---------------------------------------------------------------------------------------------- bins


def bins_of(values: NDArray, grid: Grid) -> NDArray[np.int64]:
    """Return the bin of each intensity."""
    if grid == "hu":
        return np.rint(values.clip(LEAST_HU, MOST_HU)).astype(np.int64)
    small = 10.0**LEAST_DECADE
    size = np.log10(np.abs(values).clip(small, 10.0**MOST_DECADE)) - LEAST_DECADE
    number = np.floor(size * BINS_A_DECADE).astype(np.int64) + 1
    return np.where(np.abs(values) < small, 0, np.where(values < 0, -number, number))


def value_of(number: int, grid: Grid) -> float:
    """Return the intensity in the middle of a bin."""
    if grid == "hu":
        return float(number)
    if number == 0:
        return 0.0
    size = 10 ** ((abs(number) - 0.5) / BINS_A_DECADE + LEAST_DECADE)
    return float(size if number > 0 else -size)


def size_bin(value: float) -> int:
    """Return the bin of a spacing, size or extent, centred so that 1, 10, 100 lie in the middle of theirs."""
    return round((np.log10(value) - LEAST_SIZE_DECADE) * SIZES_A_DECADE)


def size_of(number: int) -> float:
    """Return the spacing, size or extent in the middle of a bin."""
    return float(10 ** (number / SIZES_A_DECADE + LEAST_SIZE_DECADE))


def quantile(counts: Mapping[int, int], share: float) -> int:
    """Return the bin at or below which this share of a histogram lies.

    Raises:
        DataError: for an empty histogram.
    """
    whole = sum(counts.values())
    if not whole:
        raise DataError("the fingerprint's histogram is empty; it needs cases with labels")
    below = 0
    for number in sorted(counts):
        below += counts[number]
        if below >= share * whole:
            return number
    return max(counts)


def pooled(counts: Mapping[int, int], min_count: int, people: Mapping[int, int] | None = None) -> Counts:
    """Return a histogram in which no bin stands for fewer than `min_count`, its total and median kept.

    What is too few moves into the next bin towards the median, from both ends. `people` says how
    many stand behind a bin, where that is not its count. What remains at the median itself is kept,
    or the whole is empty.
    """
    people = counts if people is None else people
    if sum(people.values()) < min_count:
        return {}
    middle = quantile(counts, 0.5)
    result: dict[int, int] = {}
    held_count, held_people = counts.get(middle, 0), people.get(middle, 0)
    for side in (
        sorted(n for n in counts if n < middle),
        sorted((n for n in counts if n > middle), reverse=True),
    ):
        count = behind = 0
        for number in side:
            count, behind = count + counts[number], behind + people[number]
            if behind >= min_count:
                result[number] = count
                count = behind = 0
        held_count, held_people = held_count + count, held_people + behind
    result[middle] = held_count
    if held_people < min_count and len(result) > 1:
        # Too few even so: they join the nearest bin that may be told.
        near = min((n for n in result if n != middle), key=lambda n: (abs(n - middle), n))
        result[near] += result.pop(middle)
    return result


# ---------------------------------------------------------------------------------------------- one hospital


class _Sums:
    """What is added up over the cases of one hospital; the voxels' numbers stay numpy's until the end."""

    def __init__(self, channels: int, grid: Grid) -> None:
        self.grid = grid
        self.geometry: list[tuple[str, tuple[int, ...]]] = []  # a case's patient, and its nine bins
        self.voxels: dict[int, int] = {}
        self.holders: dict[int, int] = {}
        self.patients_of: dict[int, set[str]] = {}
        self.intensity: list[dict[int, int]] = [{} for _ in range(channels)]
        self.total, self.squares, self.counted = [0] * channels, [0] * channels, [0] * channels
        self.landmarks = [[0] * len(PERCENTILES) for _ in range(channels)]

    def add(self, case: Case, image: Volume, label: Volume | None) -> None:
        self.geometry.append((case.patient, _geometry(image)))
        for channel, voxels in enumerate(image.array):
            finite = voxels if np.isfinite(voxels).all() else voxels[np.isfinite(voxels)]
            for place, value in enumerate(_landmarks(finite)):
                self.landmarks[channel][place] += round(value * PART**2)
        if label is None:
            return
        classes = label.array[0]
        for number, count in enumerate(np.bincount(np.ascontiguousarray(classes.T).reshape(-1))):
            if count:
                self.voxels[number] = self.voxels.get(number, 0) + int(count)
                self.holders[number] = self.holders.get(number, 0) + 1
                self.patients_of.setdefault(number, set()).add(case.patient)
        inside = classes > 0
        for channel, voxels in enumerate(image.array):
            values = voxels[inside].astype(np.float64)
            values = values[np.isfinite(values)]
            self._count(channel, values[:: max(1, -(-values.size // MOST_COUNTED))])

    def _count(self, channel: int, values: NDArray[np.float64]) -> None:
        numbers, counts = np.unique(bins_of(values, self.grid), return_counts=True)
        histogram = self.intensity[channel]
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            histogram[number] = histogram.get(number, 0) + count
        self.total[channel] += round(float(values.sum()) * PART)
        self.squares[channel] += round(float((values * values).sum()) * PART)
        self.counted[channel] += values.size


def _geometry(image: Volume) -> tuple[int, ...]:
    """Return the bins of spacing, size and extent along right, front, up."""
    axes = np.abs(image.affine_ras[:3, :3]).argmax(axis=0).tolist()
    order = [axes.index(which) for which in range(3)] if sorted(axes) == [0, 1, 2] else [0, 1, 2]
    spacing = [image.spacing_mm[axis] for axis in order]
    size = [image.shape[axis] for axis in order]
    extent = [a * b for a, b in zip(spacing, size, strict=True)]
    return tuple(size_bin(value) for value in (*spacing, *size, *extent))


def _landmarks(voxels: NDArray) -> NDArray[np.float64]:
    """Return where one image's percentiles lie if its first is put at -1 and its last at 1."""
    places = percentiles(voxels, foreground=True)
    width = places[-1] - places[0]
    return (places - places[0]) / width * 2 - 1 if width > 0 else np.linspace(-1, 1, len(PERCENTILES))


def fingerprint(
    index: Index,
    *,
    grid: Grid,
    classes: int | None = None,
    channels: int = 1,
    min_count: int = 10,
    read: Callable[[Case], tuple[Volume, Volume | None]] | None = None,
) -> Fingerprint:
    """Return the fingerprint of a hospital's training cases, small counts withheld.

    Args:
        index: the site's cases; those of the split 'train' count, and test cases stay unseen.
        grid: `hu` for CT, `relative` for MR and all else; the same at every site.
        classes: how many classes the task has, 0 included; None where there are no labels.
        channels: how many channels an image has.
        min_count: counts of patients or voxels below this are withheld; the site's choice.
        read: how a case is read; `read_case` by default.

    Raises:
        DataError: for fewer than `min_count` training patients, all of which would be withheld.
        ImageError, LabelError: for a case that is refused, by its token.
    """
    cases = index.split("train")
    patients = len({case.patient for case in cases})
    if min_count < 1:
        raise DataError(f"min_count is {min_count}; at least 1 is due, 10 is advised")
    if patients < min_count or not cases:
        raise DataError(
            f"the site has {patients} training patients and withholds numbers of fewer than {min_count}; it can train "
            "without giving a fingerprint"
        )
    if read is None:
        from medfed.data.transforms import read_case

        settings = Images(channels=channels)

        def read(case: Case) -> tuple[Volume, Volume | None]:
            return read_case(case, settings, classes)

    sums = _Sums(channels, grid)
    for case in cases:
        image, label = read(case)
        if label is not None and label.array.shape[0] != 1:
            raise LabelError(f"case {case.token}: its label has {label.array.shape[0]} channels, one is due")
        sums.add(case, image, label)
    return _told(sums, patients, len(cases), classes or 0, min_count)


def _told(sums: _Sums, patients: int, cases: int, classes: int, min_count: int) -> Fingerprint:
    axes = [_axis(sums.geometry, axis, min_count) for axis in range(9)]
    few = {number for number, who in sums.patients_of.items() if len(who) < min_count}
    told = tuple(_intensity(counts, min_count) for counts in sums.intensity)
    return Fingerprint(
        grid=sums.grid,
        classes=classes,
        channels=len(sums.intensity),
        sites=1,
        patients=patients,
        cases=cases,
        withheld=len(few) + sum(bool(a) and not b for a, b in zip(sums.intensity, told, strict=True)),
        spacing=(axes[0], axes[1], axes[2]),
        size=(axes[3], axes[4], axes[5]),
        extent=(axes[6], axes[7], axes[8]),
        voxels={number: count for number, count in sums.voxels.items() if number not in few},
        holders={number: count for number, count in sums.holders.items() if number not in few},
        intensity=told,
        total=tuple(one if kept else 0 for one, kept in zip(sums.total, told, strict=True)),
        squares=tuple(one if kept else 0 for one, kept in zip(sums.squares, told, strict=True)),
        counted=tuple(one if kept else 0 for one, kept in zip(sums.counted, told, strict=True)),
        landmarks=tuple(tuple(one) for one in sums.landmarks),
    )


def _axis(geometry: Sequence[tuple[str, tuple[int, ...]]], axis: int, min_count: int) -> Counts:
    """Return cases a bin along one axis, each bin with enough patients; a patient in two bins
    counts in the first.
    """
    counts: dict[int, int] = {}
    people: dict[int, int] = {}
    seen: set[str] = set()
    for patient, bins in geometry:
        number = bins[axis]
        counts[number] = counts.get(number, 0) + 1
        people[number] = people.get(number, 0) + (patient not in seen)
        seen.add(patient)
    return pooled(counts, min_count, people)


def _intensity(counts: Mapping[int, int], min_count: int) -> Counts:
    return pooled(counts, min_count) if counts else {}


# --------------------------------------------------------------------------------------------- the federation


def merge(prints: Iterable[Fingerprint]) -> Fingerprint:
    """Return the sum of fingerprints, the same in any order and any grouping.

    Raises:
        DataError: for none, or for such as don't go together.
    """
    all_ = list(prints)
    if not all_:
        raise DataError("no fingerprint to merge; one or more are due")
    first = all_[0]
    for other in all_[1:]:
        for name in ("grid", "classes", "channels"):
            mine, theirs = getattr(first, name), getattr(other, name)
            if mine != theirs:
                raise DataError(
                    f"fingerprints differ in {name}: {mine} and {theirs}; every site must use the study's"
                )

    def added(name: str) -> int:
        return sum(getattr(one, name) for one in all_)

    def counts(parts: Iterable[Counts]) -> Counts:
        result: dict[int, int] = {}
        for part in parts:
            for number, count in part.items():
                result[number] = result.get(number, 0) + count
        return dict(sorted(result.items()))

    def three(name: str) -> tuple[Counts, Counts, Counts]:
        x, y, z = (counts(getattr(one, name)[axis] for one in all_) for axis in range(3))
        return x, y, z

    def rows(name: str) -> tuple[int, ...]:
        return tuple(sum(column) for column in zip(*(getattr(one, name) for one in all_), strict=True))

    return Fingerprint(
        grid=first.grid,
        classes=first.classes,
        channels=first.channels,
        sites=added("sites"),
        patients=added("patients"),
        cases=added("cases"),
        withheld=added("withheld"),
        spacing=three("spacing"),
        size=three("size"),
        extent=three("extent"),
        voxels=counts(one.voxels for one in all_),
        holders=counts(one.holders for one in all_),
        intensity=tuple(counts(one.intensity[channel] for one in all_) for channel in range(first.channels)),
        total=rows("total"),
        squares=rows("squares"),
        counted=rows("counted"),
        landmarks=tuple(
            tuple(sum(column) for column in zip(*(one.landmarks[channel] for one in all_), strict=True))
            for channel in range(first.channels)
        ),
    )


def to_json(one: Fingerprint) -> bytes:
    """Return a fingerprint as JSON; equal fingerprints give equal bytes."""
    return msgspec.json.encode(msgspec.to_builtins(one, str_keys=True), order="sorted")


def from_json(text: bytes | str) -> Fingerprint:
    """Return the fingerprint in JSON.

    Raises:
        DataError: for anything that is none, saying where.
    """
    try:
        found = msgspec.json.decode(text, type=Fingerprint)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise DataError(f"not a fingerprint: {error}") from None
    lengths = {
        len(getattr(found, name)) for name in ("intensity", "total", "squares", "counted", "landmarks")
    }
    if lengths != {found.channels} or any(len(row) != len(PERCENTILES) for row in found.landmarks):
        raise DataError(f"not a fingerprint: its {found.channels} channels don't each have their numbers")
    return found


# ----------------------------------------------------------------------------------------- a study's settings

# nnU-Net: an axis this much coarser than the others, and this much shorter in voxels, gets the
# finer 10th percentile.
COARSE_FACTOR = 3.0
# Networks halve a patch four times, so an axis is a multiple of 16, or of 8 where it is short.
PATCH_STEP, SHORT_PATCH_STEP = 16, 8


def proposal(
    merged: Fingerprint, *, voxels: int = 96**3, normalise: Literal["auto", "zscore", "nyul"] = "auto"
) -> dict[str, Any]:
    """Return the `data` section that nnU-Net's rules give for a merged
    fingerprint: spacing, patch, normalisation.

    Args:
        merged: of all hospitals.
        voxels: the most a patch may have; memory decides.
        normalise: `auto` is nnU-Net's choice, by the grid; `nyul` the federation's landmarks.
    """
    spacing = np.asarray(merged.spacing_mm())
    size = np.asarray(merged.extent_mm()) / spacing
    worst = int(spacing.argmax())
    others = np.delete(np.arange(3), worst)
    coarse = spacing[worst] > COARSE_FACTOR * spacing[others].max()
    if coarse and size[worst] * COARSE_FACTOR < size[others].min():
        spacing[worst] = max(merged.spacing_mm(0.1)[worst], spacing[others].max())
        size = np.asarray(merged.extent_mm()) / spacing
    chosen: dict[str, Any] = {"kind": "zscore", "foreground": False}
    if normalise == "nyul":
        chosen = {"kind": "nyul", "landmarks": [-1.0, *(round(x, 6) for x in merged.nyul()[1:-1]), 1.0]}
    elif normalise == "auto" and merged.grid == "hu":
        numbers = {"low": merged.percentile(0.5), "high": merged.percentile(99.5)}
        numbers |= {"mean": merged.mean(), "sd": merged.sd()}
        chosen = {"kind": "fingerprint"} | {name: round(value, 2) for name, value in numbers.items()}
    return {
        "kind": "images",
        "spacing_mm": [float(f"{value:.3g}") for value in spacing],
        "patch": patch(size, spacing, voxels),
        "channels": merged.channels,
        "normalise": chosen,
    }


def patch(size: NDArray, spacing: NDArray, voxels: int) -> list[int]:
    """Return the largest patch of at most `voxels` that is no larger than the median image, shaped
    like it in mm.

    The axis that is longest relative to what the image has shrinks first, so that a patch sees the
    same share of each.
    """

    def step(axis: int) -> int:
        return PATCH_STEP if size[axis] >= 2 * PATCH_STEP else SHORT_PATCH_STEP

    # nnU-Net starts from a cube in mm and cuts it to the image: a long scan doesn't make a long patch.
    cube = (1 / spacing) * (voxels * np.prod(spacing)) ** (1 / 3)
    start = np.minimum(size, 2 * cube)
    result = [max(step(axis), round(float(start[axis]) / step(axis)) * step(axis)) for axis in range(3)]
    while np.prod(result) > voxels:
        axis = max(
            (a for a in range(3) if result[a] > step(a)), key=lambda a: result[a] / cube[a], default=-1
        )
        if axis < 0:
            break
        result[axis] -= step(axis)
    return result
