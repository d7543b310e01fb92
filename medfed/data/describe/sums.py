"""The fingerprint and the table sums of all hospitals, as a plan takes them, from their summed statistics."""

from __future__ import annotations

from collections.abc import Sequence

from medfed.data.describe.blocks import Values
from medfed.data.describe.scope import AXES, GEOMETRY, Scope, first_intensity_bin
from medfed.data.fingerprint import Fingerprint
from medfed.data.harmonise import TableSums
from medfed.data.histogram import Counts
from medfed.data.normalise.nyul import PERCENTILES
from medfed.errors import DataError


def fingerprint_of(scope: Scope, values: Values) -> Fingerprint:
    """Return the hospitals' merged fingerprint.

    Raises:
        DataError: if the study has no images, or no hospital told anything of its own.
    """
    if scope.images is None:
        raise DataError("the study has no images to plan")
    if not any(values["spacing.x"]):
        raise DataError("no hospital told anything of its images; give the settings in the study instead")
    channels, marks = scope.images.inputs, values["intensity.landmarks"]
    size = len(PERCENTILES)
    first = first_intensity_bin(scope.grid)
    axes = {what: [_counts(values[f"{what}.{axis}"]) for axis in AXES] for what in GEOMETRY}
    return Fingerprint(
        grid=scope.grid,
        classes=len(scope.classes) if scope.needs == "segment" else 0,
        channels=channels,
        sites=values["hospitals"][1],
        patients=values["patients"][0],
        cases=values["cases"][0],
        withheld=values["intensity.withheld"][0],
        spacing=(axes["spacing"][0], axes["spacing"][1], axes["spacing"][2]),
        size=(axes["size"][0], axes["size"][1], axes["size"][2]),
        extent=(axes["extent"][0], axes["extent"][1], axes["extent"][2]),
        voxels={},
        holders={},
        intensity=tuple(_counts(values[f"intensity.{number}"], first) for number in range(channels)),
        total=tuple(values["intensity.total"]),
        squares=tuple(values["intensity.squares"]),
        counted=tuple(values["intensity.counted"]),
        landmarks=tuple(tuple(marks[size * n : size * (n + 1)]) for n in range(channels)),
    )


def table_sums_of(scope: Scope, values: Values) -> TableSums:
    """Return the hospitals' merged sums of the columns that are numbers."""
    table = scope.table
    if table is None:
        raise DataError("the study has no columns to plan")
    return TableSums(
        features=table.numbers,
        sites=values["hospitals"][1],
        patients=values["patients"][0],
        counted=tuple(values["columns.counted"]),
        total=tuple(values["columns.total"]),
        squares=tuple(values["columns.within"]),
    )


def _counts(dense: Sequence[int], first: int = 0) -> Counts:
    return {first + number: count for number, count in enumerate(dense) if count}
