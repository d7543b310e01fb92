"""One label from several files: a mask per structure, or several segmentations or structure sets.

A mask belongs to the structure that its file (or its folder) is named after. A DICOM object names its own
structures; of several, those that name classes of the study are used together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.class_names import ClassNames
from medfed.data.dicom.structures import find_label_object, structures_of
from medfed.data.label import read_label_on_grid, read_values, to_class_numbers
from medfed.data.label_regions import paint_regions
from medfed.data.read_options import LabelOptions
from medfed.data.refusals import LabelClassesError
from medfed.data.volume import Volume
from medfed.errors import LabelError

# Voxels of one class as flat indices into (X, Y, Z).
Voxels = NDArray[np.int64]


def read_masks_on_grid(masks: Sequence[tuple[str, Path]], like: Volume, options: LabelOptions) -> Volume:
    """Return the label of several files, each with the name of its structure ('' if it names its own).

    Masks of one class are united.

    Raises:
        LabelError: if no classes are given, two files that name their own structures disagree on a class, or
            voxels belong to several classes and `options.overlap` is 'refuse'.
    """
    naming = options.naming
    if naming is None:
        raise LabelError(
            "a label in several files needs the names of the task's classes; give classes by name"
        )
    regions: dict[int, list[Voxels]] = {}
    drawn: dict[int, Voxels] = {}
    for name, path in masks:
        if not name:
            for number, voxels in _own_structures(path, like, options, naming).items():
                if number not in drawn:
                    drawn[number] = voxels
                    regions.setdefault(number, []).append(voxels)
                elif not np.array_equal(drawn[number], voxels):
                    raise LabelClassesError(
                        "two segmentations or structure sets of this image draw "
                        f"'{naming.classes[number]}', and differently; keep the right one, or list the "
                        "cases in cases.csv"
                    )
        elif wanted := naming.class_of_name(name):
            regions.setdefault(wanted, []).append(_mask(path, like, options.resample))
    return paint_regions(regions, like, options.overlap, ())


def _mask(path: Path, like: Volume, resample: bool) -> Voxels:
    """Return the voxels of a mask of one structure.

    Raises:
        LabelClassesError: if it holds more than one value beside 0.
    """
    label = read_values(str(path), like, resample)
    if label.array.shape[0] != 1:
        raise LabelClassesError(
            f"a mask of one structure has {label.array.shape[0]} channels, 1 is expected; convert it"
        )
    numbers = to_class_numbers(label.array[0], None)
    present = np.unique(numbers[numbers != 0])
    if len(present) > 1:
        raise LabelClassesError(
            f"a mask of one structure holds {len(present)} values beside 0, one is expected; give each "
            "structure a file of its own"
        )
    return np.flatnonzero(numbers)


def _own_structures(path: Path, like: Volume, options: LabelOptions, naming: ClassNames) -> dict[int, Voxels]:
    """Return the voxels of each class that a segmentation or structure set names, none if it names none."""
    file = find_label_object(path)
    if file is None:
        raise LabelError(
            "one of several label files is no segmentation or structure set, and nothing names its "
            "structure; list the cases in cases.csv"
        )
    if not any(naming.class_of(one) for one in structures_of(file)):
        return {}
    label: NDArray[Any] = read_label_on_grid(str(path), like, options).array
    flat = label.reshape(len(label), -1)
    numbers = (int(number) for number in np.unique(flat) if number)
    return {number: np.flatnonzero((flat == number).any(axis=0)) for number in numbers}
