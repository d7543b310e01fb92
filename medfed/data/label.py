"""A label on the grid of its volume: axes reordered by position in the patient, values checked as classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.class_names import ClassNames, Structure
from medfed.data.dicom import tags
from medfed.data.dicom.rtstruct import read_structure_set
from medfed.data.dicom.seg import read_segmentation
from medfed.data.dicom.structures import find_label_object
from medfed.data.label_regions import check_classes, class_dtype, paint_regions
from medfed.data.read_options import LabelOptions, ReadOptions
from medfed.data.refusals import LabelClassesError, LabelGridError
from medfed.data.regrid import nearest_label, uncropped_label
from medfed.data.volume import Info, Volume
from medfed.data.volume_files import read_volumes
from medfed.errors import LabelError

# Two grids are the same if no corner voxel is off by more than this fraction of the smallest voxel. Real
# pairs of an image with a qform and a mask with an sform differ by 0.15 (a float32 quaternion near a half
# turn rotates the image about its first voxel); a shift that could move a voxel to its neighbour starts at
# 0.5.
GRID_TOLERANCE_VOXELS = 0.2
# The same for the best corner: if that is off too, the grid is shifted and not only rounded in its rotation.
SHIFT_TOLERANCE_VOXELS = 0.05
# Classes that were interpolated or scaled come back as 0.99999; a value further from an integer is no class.
CLASS_TOLERANCE = 1e-3
# White in a black-and-white mask of 8 bits.
WHITE = 255


def read_label_on_grid(path: str, like: Volume, options: LabelOptions) -> Volume:
    """Return the label at `path` on the grid of `like`; see `medfed.read_label`."""
    if options.overlap not in ("channels", "refuse", "later"):
        raise LabelError(f"overlap is 'channels', 'refuse' or 'later'; not {options.overlap!r}")
    if like.array.ndim != 4:
        raise LabelError(f"the volume has {like.array.ndim} axes; (C, X, Y, Z) is expected")
    found = find_label_object(path)
    if found is not None:
        drawn = _OBJECT_READERS[found.elements.text(tags.MODALITY)](found, like, options)
        _check_interpolated(drawn.array, like.info.interpolated)
        return drawn
    label = read_values(path, like, options.resample)
    if _is_named(label, options):
        return _named_segments(label, like, options)
    if label.array.shape[0] != 1:
        raise LabelError(
            f"the label has {label.array.shape[0]} channels, 1 with class numbers is expected; convert it"
        )
    values = _black_and_white(label, options)
    classes = to_class_numbers(values, options.classes, options.naming)
    return Volume(classes[None], like.affine_ras.copy(), label.info)


def _check_interpolated(label: NDArray[Any], interpolated: Sequence[int]) -> None:
    """Raise a LabelError if a structure is on both sides of interpolated slices and not on them."""
    taken = [k for k in range(label.shape[3]) if k not in interpolated]
    for below, above in itertools.pairwise(taken):
        before, between, after = label[..., below], label[..., below + 1 : above], label[..., above]
        for value in np.unique(before[(before == after) & (before != 0)]) if above > below + 1 else ():
            both = ((before == value) & (after == value)).any(axis=(1, 2))
            if (both & ~(between == value).any(axis=(1, 2, 3))).any():
                raise LabelError(
                    f"a structure has no voxel on slice {below + 2}, which was interpolated between two that "
                    "hold it, so that nobody drew there; complete the series and its label, or omit the case"
                )


_OBJECT_READERS = {b"SEG": read_segmentation, b"RTSTRUCT": read_structure_set}


def read_values(path: str, like: Volume, resample: bool = False) -> Volume:
    """Return the values (C, X, Y, Z) of a label that is an image, on the grid of `like`.

    A seg.nrrd is stored as a crop of its image and is put back, voxel for voxel. With `resample` a label on
    another grid takes the values of the nearest voxels, with the flag `resampled`.

    Raises:
        LabelError: if there are several volumes, or the grid is another one.
    """
    options = ReadOptions(padding="nan", as_label=True, unlimited_ratio_voxels=like.array[0].size)
    volumes = read_volumes(path, options)
    if len(volumes) != 1:
        raise LabelError(
            f"the label's folder holds {len(volumes)} volumes, 1 is expected; name the label's file"
        )
    label = volumes[0]
    try:
        moved = [reorient_to_grid(one, label.affine_ras, like) for one in label.array]
        flags: tuple[str, ...] = ()
    except LabelGridError as error:
        moved, flags = _onto_grid(label, like, resample, error)
    flags += tuple(flag for flag in label.info.flags if flag == "pixels")
    info = Info("", label.info.skipped, flags, label_names=label.info.label_names)
    return Volume(np.stack(moved), like.affine_ras.copy(), info)


def _onto_grid(
    label: Volume, like: Volume, resample: bool, error: LabelGridError
) -> tuple[list[NDArray[Any]], tuple[str, ...]]:
    """Return each channel of a label that is not on the grid of `like`, moved onto it.

    Raises:
        LabelGridError: if it is no crop and may not be resampled, or lies outside the image.
    """
    if "cropped" in label.info.flags:
        whole = [uncropped_label(one, label.affine_ras, like) for one in label.array]
        if all(one is not None for one in whole):
            return [one for one in whole if one is not None], ()
    if not resample:
        raise error
    return [nearest_label(one, label.affine_ras, like) for one in label.array], ("resampled",)


def _is_named(label: Volume, options: LabelOptions) -> bool:
    """Whether the names in a label's file decide: those of segments do, colours if one is a known word."""
    names = label.info.label_names.values()
    if any(name.startswith("#") for name in names):
        return options.naming is not None and any(
            options.naming.class_of_name(name) is not None for name in names
        )
    return bool(names)


def _named_segments(label: Volume, like: Volume, options: LabelOptions) -> Volume:
    """Return a label whose segments have names and numbers of their own, over all its channels."""
    names = label.info.label_names
    chosen = options.classes_of([Structure(number, name) for number, name in sorted(names.items())])
    regions: dict[int, list[NDArray[np.int64]]] = {}
    for number, target in chosen.items():
        if number and target:
            here = [np.flatnonzero(channel == number) for channel in label.array]
            regions.setdefault(target, []).extend(here)
    check_classes(sorted(regions), options.classes)
    left_out = [number for number, target in chosen.items() if number and target is None]
    skipped = (*label.info.skipped, *(f"segment {number}, which is no class" for number in left_out))
    return paint_regions(regions, like, options.overlap, skipped, label.info.flags)


def _black_and_white(label: Volume, options: LabelOptions) -> NDArray[Any]:
    """Return a label's values, with white as class 1 if a task of two classes has a picture's 0 and 255."""
    values = label.array[0]
    plain = options.naming is None or not options.naming.meanings
    picture = "pixels" in label.info.flags and options.classes == 2
    if plain and picture and values.max() == WHITE and np.isin(values, (0, WHITE)).all():
        return np.asarray(values / WHITE)
    return np.asarray(values)


def reorient_to_grid(voxels: NDArray[Any], affine_ras: NDArray[np.float64], like: Volume) -> NDArray[Any]:
    """Return voxels, (X, Y, Z), in the axis order and directions of `like`.

    Raises:
        LabelError: if they do not lie exactly on its voxels, with the distance.
    """
    to_like = np.linalg.solve(like.affine_ras, affine_ras)
    turn = np.rint(to_like[:3, :3])
    order = np.abs(turn).argmax(axis=0)  # label axis -> axis of like
    if sorted(order.tolist()) != [0, 1, 2] or not np.array_equal(np.abs(turn).sum(axis=0), [1, 1, 1]):
        raise LabelGridError(
            f"the label's grid is rotated or has another spacing: voxels of {_size_mm(affine_ras)} mm, the"
            f" image has {_size_mm(like.affine_ras)} mm; resample it onto the image, or"
            " set data.resample_labels in the study"
        )
    shape = tuple(voxels.shape[int(axis)] for axis in np.argsort(order))
    if shape != like.shape:
        raise LabelGridError(
            f"the label has {' x '.join(map(str, shape))} voxels, the image"
            f" {' x '.join(map(str, like.shape))}; resample it onto the image, or"
            " set data.resample_labels in the study"
        )
    flipped = tuple(axis for axis in range(3) if turn[order[axis], axis] < 0)
    exact = np.eye(4)
    exact[:3, :3] = turn
    for axis in flipped:
        exact[order[axis], 3] = voxels.shape[axis] - 1
    _check_corners(to_like - exact, voxels.shape, like)
    return np.flip(voxels, flipped).transpose(np.argsort(order))


def _check_corners(deviation: NDArray[np.float64], shape: tuple[int, ...], like: Volume) -> None:
    """Raise LabelError if a corner is off by too much; `deviation` (4, 4) is in voxels of `like`."""
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*[(0, n - 1) for n in shape])])
    distances = np.linalg.norm(like.affine_ras[:3, :3] @ (deviation @ corners.T)[:3], axis=0)
    smallest = min(like.spacing_mm)
    if (
        distances.max() > GRID_TOLERANCE_VOXELS * smallest
        or distances.min() > SHIFT_TOLERANCE_VOXELS * smallest
    ):
        raise LabelGridError(
            f"the label's grid is shifted: corners lie up to {distances.max():.2f} mm from the image's, at"
            f" voxels of {_size_mm(like.affine_ras)} mm; resample it onto the image (the study's"
            " data.resample_labels does), or take the label of this image"
        )


def _size_mm(affine: NDArray[np.float64]) -> str:
    return " x ".join(f"{length:.3f}" for length in np.linalg.norm(affine[:3, :3], axis=0))


def to_class_numbers(
    voxels: NDArray[Any], classes: int | None, naming: ClassNames | None = None
) -> NDArray[Any]:
    """Return class numbers in the smallest integer type that torch supports.

    If `naming` knows what the values mean, each becomes the class that its meaning names, or background.

    Raises:
        LabelError: if a value is not an integer, is negative, has no known meaning, or is not a class of the
            task.
    """
    # Plane by plane along the slowest axis: sorting a whole body's voxels for their values would take a
    # minute.
    slowest = int(np.argmax(np.abs(voxels.strides)))
    planes = np.moveaxis(voxels, slowest, 0)
    values: set[int] = set()
    deviation = 0.0
    for plane in planes:
        low, high = float(plane.min()), float(plane.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise LabelClassesError("the label holds values that are not finite numbers; correct it")
        whole = np.rint(plane)
        deviation = max(deviation, float(np.abs(plane - whole).max()))
        values |= {int(np.rint(low))} if low == high else _distinct(whole)
    if deviation > CLASS_TOLERANCE:
        raise LabelClassesError(
            f"the label holds values up to {deviation:.3f} from an integer, so it is no map of classes; make"
            " it one (threshold a probability, resample with nearest neighbour)"
        )
    present = sorted(values)
    if naming is None or not naming.meanings:
        check_classes(present, classes)
        result = np.empty_like(voxels, class_dtype(max(values)))
        for target, plane in zip(np.moveaxis(result, slowest, 0), planes, strict=True):
            target[...] = np.rint(plane)
        return result
    check_classes(present, None)
    numbers = np.array([naming.class_of_number(value) or 0 for value in present])
    result = np.empty_like(voxels, class_dtype(int(numbers.max())))
    for target, plane in zip(np.moveaxis(result, slowest, 0), planes, strict=True):
        target[...] = numbers[np.searchsorted(present, np.rint(plane))]
    return result


def _distinct(whole: NDArray[Any]) -> set[int]:
    """Return the distinct values of a plane of integers."""
    low = int(whole.min())
    if int(whole.max()) - low > 1 << 16:
        return {int(value) for value in np.unique(whole)}
    return {low + int(index) for index in np.flatnonzero(np.bincount((whole - low).astype(np.int32).ravel()))}
