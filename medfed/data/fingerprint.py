"""The fingerprint of a federation's data: nnU-Net's statistics over all cases, from sums
that hospitals can add.

`fingerprint` makes a hospital's own and `merge` adds them; `proposal.py` turns the sum into the `data`
section of a study. A fingerprint holds counts and whole numbers only: a sum of whole numbers is the same in
whatever order sites arrive, bit for bit.

`Fingerprint` is all that leaves a hospital this way. Counts of fewer than `min_count` patients, or voxels
in a histogram's bin, are withheld: the whole fingerprint, a class, or a bin, which moves into the next
one towards the median.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from medfed.data import histogram
from medfed.data.case import Case
from medfed.data.case_reading import read_case
from medfed.data.class_names import Classes, count_of
from medfed.data.histogram import Counts, Grid, Whole
from medfed.data.index import Index
from medfed.data.normalise.nyul import PERCENTILES, percentiles
from medfed.data.refusals import reason_of
from medfed.data.screening import (
    RefusedCase,
    count_reasons,
    left_out_line,
    refuse_excess,
    without_refused,
)
from medfed.data.settings import Images, Unreadable
from medfed.data.volume import Volume
from medfed.errors import DECODING_ERRORS, DataError, ImageError, LabelError, TooFewPatientsError

# Sums of intensities are whole multiples of 1/FIXED_POINT.
FIXED_POINT = 1024
# If a case's foreground has more voxels than this, every n-th is counted: a body of 50 million voxels would
# add nothing.
MAX_COUNTED = 4_000_000


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sums over a hospital's training cases, or over several hospitals'.

    grid: the bins of the intensity histograms: one per HU for `hu`, one every 1.2 % for `relative`.
    classes: how many classes labels have, 0 included.  sites, patients, cases: how many are included.
    withheld: how many counts sites withheld because of too few patients.  spacing, size, extent: for the axes
    right, front and up, the cases in each bin of mm, voxels and mm.  voxels, holders: for each class, its
    voxels and the cases that have it, over the sites that did not withhold it.
    intensity: for each channel, a histogram of the foreground's voxels.  total, squares: the sums of its
    intensities and of their squares, in multiples of 1/1024.  landmarks: for each channel, sums of Nyul's
    landmarks over `cases`, in multiples of 1/1048576.
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
        """Return the quantile `share` of the cases' spacing along right, front and up."""
        x, y, z = (histogram.bin_to_length(histogram.quantile(counts, share)) for counts in self.spacing)
        return x, y, z

    def extent_mm(self) -> tuple[float, float, float]:
        """Return the median extent along right, front and up."""
        x, y, z = (histogram.bin_to_length(histogram.quantile(counts, 0.5)) for counts in self.extent)
        return x, y, z

    def percentile(self, percent: float, channel: int = 0) -> float:
        """Return a percentile of the foreground's intensities, exact to half a bin."""
        return histogram.bin_to_intensity(
            histogram.quantile(self.intensity[channel], percent / 100), self.grid
        )

    def mean(self, channel: int = 0) -> float:
        """Return the mean of the foreground's intensities."""
        return self.total[channel] / FIXED_POINT / self._counted(channel)

    def sd(self, channel: int = 0) -> float:
        """Return the standard deviation of the foreground's intensities."""
        # Whole numbers until the last step: the difference of two large floats would lose its digits.
        number = self._counted(channel)
        spread = self.squares[channel] * FIXED_POINT * number - self.total[channel] ** 2
        return float(max(spread, 0) ** 0.5 / (FIXED_POINT * number))

    def nyul(self, channel: int = 0) -> tuple[float, ...]:
        """Return the mean position of each of Nyul's landmarks between -1 and 1."""
        self._counted(channel)
        return tuple(total / FIXED_POINT**2 / self.cases for total in self.landmarks[channel])

    def _counted(self, channel: int) -> int:
        if not self.counted[channel]:
            raise DataError("the fingerprint counts no foreground voxel; it needs cases with labels")
        return self.counted[channel]


class _Sums:
    """The sums over the cases of one hospital, before small counts are withheld."""

    def __init__(self, channels: int, grid: Grid) -> None:
        self.grid = grid
        self.geometry: list[tuple[str, tuple[int, ...]]] = []  # each case's patient and its nine bins
        self.voxels: Counter[int] = Counter()
        self.holders: Counter[int] = Counter()
        self.patients_of: defaultdict[int, set[str]] = defaultdict(set)
        self.intensity: list[Counter[int]] = [Counter() for _ in range(channels)]
        self.total, self.squares, self.counted = [0] * channels, [0] * channels, [0] * channels
        self.landmarks = [[0] * len(PERCENTILES) for _ in range(channels)]

    def add(self, case: Case, image: Volume, label: Volume | None) -> None:
        self.geometry.append((case.patient, geometry_bins(image)))
        for channel, voxels in enumerate(image.array):
            finite = voxels if np.isfinite(voxels).all() else voxels[np.isfinite(voxels)]
            for rank, value in enumerate(_landmarks(finite)):
                self.landmarks[channel][rank] += round(value * FIXED_POINT**2)
        if label is not None:
            self._add_label(case, image, label.array[0])

    def _add_label(self, case: Case, image: Volume, classes: NDArray[np.integer]) -> None:
        for number, count in enumerate(np.bincount(np.ascontiguousarray(classes.T).reshape(-1))):
            if count:
                self.voxels[number] += int(count)
                self.holders[number] += 1
                self.patients_of[number].add(case.patient)
        foreground = classes > 0
        for channel, voxels in enumerate(image.array):
            values = voxels[foreground].astype(np.float64)
            values = values[np.isfinite(values)]
            self._add_intensities(channel, values[:: max(1, -(-values.size // MAX_COUNTED))])

    def _add_intensities(self, channel: int, values: NDArray[np.float64]) -> None:
        numbers, counts = np.unique(histogram.intensity_bins(values, self.grid), return_counts=True)
        self.intensity[channel].update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        self.total[channel] += round(float(values.sum()) * FIXED_POINT)
        self.squares[channel] += round(float((values * values).sum()) * FIXED_POINT)
        self.counted[channel] += values.size


def geometry_bins(image: Volume) -> tuple[int, ...]:
    """Return the bins of spacing, size and extent along right, front, up."""
    order = image.axes_ras or (0, 1, 2)
    spacing = [image.spacing_mm[axis] for axis in order]
    size = [image.shape[axis] for axis in order]
    extent = [a * b for a, b in zip(spacing, size, strict=True)]
    return tuple(histogram.length_bin(value) for value in (*spacing, *size, *extent))


def _landmarks(voxels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return one image's percentiles, scaled so that the first is -1 and the last is 1."""
    values = percentiles(voxels, foreground=True)
    width = values[-1] - values[0]
    return (values - values[0]) / width * 2 - 1 if width > 0 else np.linspace(-1, 1, len(PERCENTILES))


def fingerprint(
    index: Index,
    *,
    grid: Grid,
    classes: Classes = None,
    settings: Images | None = None,
    min_count: int = 10,
    bears: Unreadable | None = None,
    tell: Callable[[str], None] = lambda line: None,
    also: Callable[[Case, Volume, Volume | None], None] = lambda case, image, label: None,
) -> Fingerprint:
    """Return the fingerprint of a hospital's training cases, small counts withheld.

    Args:
        index: the site's cases; those of the split 'train' are read, test cases are not.
        grid: `hu` for CT, `relative` for MR and all others; the same at every site.
        classes: the task's classes by name, or how many there are; None where there are no labels.
        settings: how the study reads images, so that what is planned is what is trained on; the default is
            one channel, read as `medfed.read` does.
        min_count: counts of patients or voxels below this are withheld; the site's choice.
        bears: how many cases are left out because they cannot be used; None bears none.
        tell: called with a line on how many were left out and why, if any.
        also: called with each case that is counted, for what else is counted of it.

    Raises:
        TooFewPatientsError: for fewer than `min_count` training patients; then everything would be withheld.
        ImageError, LabelError: for a case that is refused, by its token, if none is borne.
        DataError: if more cases cannot be used than are borne.
    """
    cases = index.split("train")
    _require_patients(cases, min_count)
    settings = settings or Images()
    sums = _Sums(settings.inputs, grid)
    refused: list[RefusedCase] = []
    for case in cases:
        try:
            image, label = _read_labelled(case, settings, classes)
            sums.add(case, image, label)
        except ImageError as error:
            if bears is None:
                raise
            refused.append(RefusedCase(case, reason_of(error), str(error)))
        else:
            also(case, image, label)
    if refused and bears is not None:
        refuse_excess(refused, len(cases), bears)
        tell(left_out_line(count_reasons(refused), len(cases)))
    used = without_refused(cases, refused)
    patients = _require_patients(used, min_count)
    return _released(sums, patients, len(used), count_of(classes) or 0, min_count)


def _require_patients(cases: Sequence[Case], min_count: int) -> int:
    """Return how many patients some cases are of, if they are enough to give a fingerprint."""
    patients = len({case.patient for case in cases})
    if min_count < 1:
        raise DataError(f"counts below {min_count} are to be withheld; expected at least 1, 10 is advised")
    if patients < min_count or not cases:
        raise TooFewPatientsError(
            f"the site has {patients} training patients and withholds numbers of fewer than {min_count}; it "
            "can train without giving a fingerprint"
        )
    return patients


def _read_labelled(case: Case, settings: Images, classes: Classes) -> tuple[Volume, Volume | None]:
    image, label = read_case(case, settings, classes)
    if label is not None and label.array.shape[0] != 1:
        raise LabelError(f"case {case.token}: its label has {label.array.shape[0]} channels, expected one")
    return image, label


def _released(sums: _Sums, patients: int, cases: int, classes: int, min_count: int) -> Fingerprint:
    """Return the sums as a fingerprint, with small counts withheld."""
    axes = [_axis_counts(sums.geometry, axis, min_count) for axis in range(9)]
    rare = {number for number, people in sums.patients_of.items() if len(people) < min_count}
    histograms = tuple(
        histogram.suppress_small_bins(counts, min_count) if counts else {} for counts in sums.intensity
    )
    withheld = sum(bool(counts) and not bins for counts, bins in zip(sums.intensity, histograms, strict=True))

    def of_released(totals: Sequence[int]) -> tuple[int, ...]:
        return tuple(total if bins else 0 for total, bins in zip(totals, histograms, strict=True))

    return Fingerprint(
        grid=sums.grid,
        classes=classes,
        channels=len(sums.intensity),
        sites=1,
        patients=patients,
        cases=cases,
        withheld=len(rare) + withheld,
        spacing=(axes[0], axes[1], axes[2]),
        size=(axes[3], axes[4], axes[5]),
        extent=(axes[6], axes[7], axes[8]),
        voxels={number: count for number, count in sums.voxels.items() if number not in rare},
        holders={number: count for number, count in sums.holders.items() if number not in rare},
        intensity=histograms,
        total=of_released(sums.total),
        squares=of_released(sums.squares),
        counted=of_released(sums.counted),
        landmarks=tuple(tuple(one) for one in sums.landmarks),
    )


def _axis_counts(geometry: Sequence[tuple[str, tuple[int, ...]]], axis: int, min_count: int) -> Counts:
    """Return the cases in each bin along one axis; a patient in two bins counts in the first only."""
    counts = Counter(bins[axis] for _, bins in geometry)
    # Reversed, so that a patient's first bin is the last written.
    first_bin = {patient: bins[axis] for patient, bins in reversed(geometry)}
    return histogram.suppress_small_bins(counts, min_count, Counter(first_bin.values()))


# --------------------------------------------------------------------------------------------- the federation


def merge(fingerprints: Iterable[Fingerprint]) -> Fingerprint:
    """Return the sum of fingerprints, the same in any order and any grouping.

    Raises:
        DataError: for no fingerprint, or for fingerprints of different grids, classes or channels.
    """
    sites = list(fingerprints)
    if not sites:
        raise DataError("no fingerprint to merge; one or more are needed")
    first = sites[0]
    for other in sites[1:]:
        for name in ("grid", "classes", "channels"):
            mine, theirs = getattr(first, name), getattr(other, name)
            if mine != theirs:
                raise DataError(
                    f"fingerprints differ in {name}: {mine} and {theirs}; every site must use the study's"
                )

    summed = set(Fingerprint.__struct_fields__) - {"version", "grid", "classes", "channels"}
    return histogram.add_records(sites, summed)


def to_json(fingerprint: Fingerprint) -> bytes:
    """Return a fingerprint as JSON; equal fingerprints give equal bytes."""
    return msgspec.json.encode(msgspec.to_builtins(fingerprint, str_keys=True), order="sorted")


def from_json(text: bytes | str) -> Fingerprint:
    """Return the fingerprint in JSON.

    Raises:
        DataError: for anything else, saying where it differs.
    """
    try:
        result = msgspec.json.decode(text, type=Fingerprint)
    except DECODING_ERRORS as error:
        raise DataError(f"not a fingerprint: {error}") from None
    by_channel = (result.intensity, result.total, result.squares, result.counted, result.landmarks)
    lengths = {len(numbers) for numbers in by_channel}
    if lengths != {result.channels} or any(len(row) != len(PERCENTILES) for row in result.landmarks):
        raise DataError(f"not a fingerprint: its {result.channels} channels don't each have their numbers")
    return result
