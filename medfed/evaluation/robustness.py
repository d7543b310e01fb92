"""What a model loses on slightly worse images: the same patients, perturbed in a stated way.

An image is perturbed before anything else, as its files would be. Orientation, resampling and normalisation
then follow as for any image, so a change that normalisation undoes costs nothing. The numeric columns of a
table are perturbed after scaling, in units of their own spread over the measured patients.

To add a change, write a function from an image (C, X, Y, Z), its spacing in mm and a generator to an image of
the same shape, and list it in `IMAGE_CHANGES`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from medfed.evaluation import comparisons
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.rows import CaseRow, Row

Image = NDArray[np.float32]
ImageChange = Callable[[Image, Sequence[float], np.random.Generator], Image]
TableChange = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]

# What an image or a table is changed by, as shares of its range (between these percentiles) or spread.
RANGE_PERCENTILES = (0.5, 99.5)
SHIFT, GAMMA, NOISE, BIAS_GAIN = 0.2, 1.5, 0.1, 0.3
# One slice of so many is lost.
SLICES_PER_LOST_SLICE = 4
TABLE_NOISE = TABLE_SHIFT = 0.25
# A group of rows that are about changed images is called so.
CONDITION = "condition="
UNCHANGED = "unchanged"
LOST_SLICES = "every 4th slice lost"


def _range(channel: Image) -> tuple[float, float]:
    low, high = np.percentile(channel, RANGE_PERCENTILES)
    return float(low), float(high)


def shifted(image: Image, spacing_mm: Sequence[float], generator: np.random.Generator) -> Image:
    """Return the image with a fifth of its range added to every voxel: another scanner's offset."""
    steps = [SHIFT * (high - low) for low, high in map(_range, image)]
    return np.asarray(image + np.array(steps, np.float32)[:, None, None, None], np.float32)


def contrast(image: Image, spacing_mm: Sequence[float], generator: np.random.Generator) -> Image:
    """Return the image with its grey values bent by a power of 1.5: another sequence's contrast."""
    channels = []
    for channel in image:
        low, high = _range(channel)
        unit = np.clip((channel - low) / max(high - low, 1e-12), 0.0, None)
        channels.append(np.where(channel > low, low + (high - low) * unit**GAMMA, channel))
    return np.asarray(np.stack(channels), np.float32)


def bias_field(image: Image, spacing_mm: Sequence[float], generator: np.random.Generator) -> Image:
    """Return the image under a gain from 0.7 to 1.3 along its first axis: a surface coil's shading."""
    gain = np.linspace(1 - BIAS_GAIN, 1 + BIAS_GAIN, image.shape[1], dtype=np.float32)[:, None, None]
    lows = np.array([_range(channel)[0] for channel in image], np.float32)[:, None, None, None]
    return np.asarray((image - lows) * gain + lows, np.float32)


def noisy(image: Image, spacing_mm: Sequence[float], generator: np.random.Generator) -> Image:
    """Return the image with normal noise of a tenth of its range: a faster scan."""
    spread = np.array([NOISE * (high - low) for low, high in map(_range, image)], np.float32)
    noise = generator.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(image + noise * spread[:, None, None, None], np.float32)


def dropped_slices(image: Image, spacing_mm: Sequence[float], generator: np.random.Generator) -> Image:
    """Return the image with every fourth slice along the widest spacing replaced by its neighbours' mean."""
    axis = 3 - int(np.argmax(np.asarray(spacing_mm)[::-1]))
    changed = np.array(image, np.float32)
    slices = np.moveaxis(changed, axis, 0)
    for lost in range(SLICES_PER_LOST_SLICE - 1, len(slices) - 1, SLICES_PER_LOST_SLICE):
        slices[lost] = (slices[lost - 1] + slices[lost + 1]) / 2
    return changed


IMAGE_CHANGES: dict[str, ImageChange] = {
    "intensity shifted by 20 %": shifted,
    "contrast bent (power 1.5)": contrast,
    "shading of 30 %": bias_field,
    "noise of 10 %": noisy,
    LOST_SLICES: dropped_slices,
}


def _column_spread(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each column's spread, and 0 for a column of one or two values, which is a category."""
    varied = np.array([len(np.unique(column)) > 2 for column in features.T], dtype=bool)
    return np.asarray(np.where(varied, features.std(axis=0) if len(features) else 0.0, 0.0), np.float32)


def table_shifted(features: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return (patients, columns), each shifted by a quarter of its spread: another laboratory's offset."""
    return np.asarray(features + TABLE_SHIFT * _column_spread(features), np.float32)


def table_noisy(features: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return (patients, columns) with normal noise of a quarter of its spread on each number."""
    noise = generator.standard_normal(features.shape, dtype=np.float32)
    return np.asarray(features + TABLE_NOISE * noise * _column_spread(features), np.float32)


TABLE_CHANGES: dict[str, TableChange] = {
    "numbers shifted by 0.25 SD": table_shifted,
    "noise of 0.25 SD": table_noisy,
}


def robustness(cases: Iterable[CaseRow], settings: SummarySettings) -> list[Row]:
    """Return, for each change and hospital, the changed minus the unchanged metric on the same patients.

    A row's `group` is "condition=<change>" and its `against` "unchanged". Hospitals that are
    suppressed elsewhere are suppressed here, and the p values of one metric at one hospital are
    corrected together over the changes.
    """
    conditions: dict[tuple[str, str], list[CaseRow]] = defaultdict(list)
    plain: dict[str, list[CaseRow]] = defaultdict(list)
    for case in cases:
        if case.split != "test":
            continue
        bare = msgspec.structs.replace(case, condition=None)
        if case.condition is not None:
            conditions[case.model, case.condition].append(bare)
        else:
            plain[case.model].append(bare)
    rows: list[Row] = []
    for (model, condition), changed in sorted(conditions.items()):
        # Compared as two models are, paired by patient: the unchanged images stand for the other model.
        against = [msgspec.structs.replace(case, model=UNCHANGED) for case in plain[model]]
        differences = comparisons.compare([*changed, *against], settings, model=model, correct=False)
        rows += [msgspec.structs.replace(row, group=f"{CONDITION}{condition}") for row in differences]
    return comparisons.holm_corrected(rows)
