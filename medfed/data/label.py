"""A label on the grid of its volume: voxels put where they belong in the patient, values checked to
be classes."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from medfed.data.cache_location import skip_cache_folder
from medfed.data.dicom.file import open_dicom
from medfed.data.dicom.frame import MODALITY
from medfed.data.volume import Info, Volume
from medfed.errors import LabelError

# Two grids are one if no corner voxel lies further off than this part of the smallest voxel. Real pairs of an
# image with a qform and a mask with an sform differ by 0.15 (a float32 quaternion near a half turn turns the
# image about its first voxel); a shift that could move a voxel to its neighbour starts at 0.5.
GRID_TOLERANCE_VOXELS = 0.2
# The same for the corner that lies best: what is off there, too, is no rounded turn but another place.
SHIFT_TOLERANCE_VOXELS = 0.05
# Classes that were interpolated or scaled come back as 0.99999; anything further from whole is no class.
CLASS_TOLERANCE = 1e-3


def label_on(
    path: str,
    like: Volume,
    classes: int | None,
    names: Mapping[str, int] | None = None,
    overlap: str = "channels",
) -> Volume:
    """Return the label at `path` on the grid of `like`; see `medfed.data.read.read_label`."""
    from medfed.data.dicom.rtstruct import structures_on
    from medfed.data.dicom.seg import segments_on
    from medfed.data.dicom.volumes import Wish
    from medfed.data.read import read_as

    if overlap not in ("channels", "refuse", "later"):
        raise LabelError(f"overlap is 'channels', 'refuse' or 'later'; not {overlap!r}")
    if like.array.ndim != 4:
        raise LabelError(f"the volume has {like.array.ndim} axes, (C, X, Y, Z) is due")
    kind, label_path = _single_label(path)
    if kind == b"SEG":
        return segments_on(label_path, like, classes, names, overlap)
    if kind == b"RTSTRUCT":
        return structures_on(label_path, like, classes, names, overlap)
    volumes = read_as(label_path, Wish(padding="nan", free_voxels=like.array[0].size))
    if len(volumes) != 1:
        raise LabelError(
            f"the label's folder holds {len(volumes)} volumes, one is due; name the label's file"
        )
    label = volumes[0]
    if label.array.shape[0] != 1:
        raise LabelError(
            f"the label has {label.array.shape[0]} channels, one with class numbers is due; convert it"
        )
    voxels = on_grid(label.array[0], label.affine_ras, like)
    return Volume(
        whole_classes(voxels, classes)[None], like.affine_ras.copy(), Info("", label.info.skipped, ())
    )


def _single_label(path: str) -> tuple[bytes, str]:
    """Return the modality and path of the one segmentation or structure set; empty where the label
    is an image."""
    if not stat.S_ISDIR(os.stat(path).st_mode):
        file = open_dicom(path) if stat.S_ISREG(os.stat(path).st_mode) else None
        return (file.elements.text(MODALITY) if file is not None else b""), path
    found = []
    for folder, folders, file_names in os.walk(path):
        folders[:] = skip_cache_folder(folders)
        for name in file_names:
            file_path = os.path.join(folder, name)
            file = open_dicom(file_path)
            if file is not None and file.elements.text(MODALITY) in (b"SEG", b"RTSTRUCT"):
                found.append((file.elements.text(MODALITY), file_path))
    if len(found) > 1:
        raise LabelError(
            f"the folder holds {len(found)} segmentations or structure sets; name the file of one"
        )
    return found[0] if found else (b"", path)


def on_grid(voxels: NDArray, affine_ras: NDArray[np.float64], like: Volume) -> NDArray:
    """Return voxels, (X, Y, Z), in the axis order and directions of `like`.

    Raises:
        LabelError: if they do not lie exactly on its voxels, saying how far off they are.
    """
    to_like = np.linalg.solve(like.affine_ras, affine_ras)
    turn = np.rint(to_like[:3, :3])
    order = np.abs(turn).argmax(axis=0)  # label axis -> axis of like
    clean = sorted(order.tolist()) == [0, 1, 2] and np.array_equal(np.abs(turn).sum(axis=0), [1, 1, 1])
    if not clean:
        raise LabelError(
            f"the label's grid is turned or spaced otherwise: voxels of {_mm(affine_ras)} mm where the"
            " image has"
            f" {_mm(like.affine_ras)} mm; resample it onto the image"
        )
    shape = [0, 0, 0]
    for axis in range(3):
        shape[order[axis]] = voxels.shape[axis]
    if tuple(shape) != like.shape:
        raise LabelError(
            f"the label has {' x '.join(map(str, shape))} voxels, the image"
            f" {' x '.join(map(str, like.shape))};"
            " resample it onto the image"
        )
    exact = np.eye(4)
    exact[:3, :3] = turn
    for axis in range(3):
        if turn[order[axis], axis] < 0:
            exact[order[axis], 3] = voxels.shape[axis] - 1
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*[(0, n - 1) for n in voxels.shape])])
    off_mm = like.affine_ras[:3, :3] @ ((to_like - exact) @ corners.T)[:3]
    distances = np.linalg.norm(off_mm, axis=0)
    furthest, nearest = float(distances.max()), float(distances.min())
    smallest = float(np.linalg.norm(like.affine_ras[:3, :3], axis=0).min())
    if furthest > GRID_TOLERANCE_VOXELS * smallest or nearest > SHIFT_TOLERANCE_VOXELS * smallest:
        raise LabelError(
            f"the label's grid is shifted: corners lie up to {furthest:.2f} mm from the image's, at voxels of"
            f" {_mm(like.affine_ras)} mm; resample it onto the image, or take the label of this image"
        )
    turned = voxels
    for axis in range(3):
        if turn[order[axis], axis] < 0:
            turned = np.flip(turned, axis)
    return turned.transpose(np.argsort(order))


def _mm(affine: NDArray[np.float64]) -> str:
    return " x ".join(f"{length:.3f}" for length in np.linalg.norm(affine[:3, :3], axis=0))


def whole_classes(voxels: NDArray, classes: int | None) -> NDArray:
    """Return class numbers as the smallest whole-number type that torch knows.

    Raises:
        LabelError: if a value is not whole, negative, or no class of the task.
    """
    # Plane by plane along the slowest axis: sorting a whole body's voxels for their values would
    # take a minute.
    slowest = int(np.argmax(np.abs(voxels.strides)))
    planes = np.moveaxis(voxels, slowest, 0)
    values: set[int] = set()
    off = 0.0
    for plane in planes:
        low, high = float(plane.min()), float(plane.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise LabelError("the label holds values that are no finite numbers; correct it")
        whole = np.rint(plane)
        off = max(off, float(np.abs(plane - whole).max()))
        values |= {int(value) for value in ({np.rint(low)} if low == high else _values(whole))}
    if off > CLASS_TOLERANCE:
        raise LabelError(
            f"the label holds values up to {off:.3f} from a whole number, so it is no map of classes; make it one "
            "(threshold a probability, resample with nearest neighbour)"
        )
    check_classes(sorted(values), classes)
    highest = max(values)
    result = np.empty_like(voxels, np.uint8 if highest < 256 else np.int16 if highest < 1 << 15 else np.int32)
    for target, plane in zip(np.moveaxis(result, slowest, 0), planes, strict=True):
        target[...] = np.rint(plane)
    return result


def _values(whole: NDArray) -> NDArray:
    """Return the values of a plane of whole numbers, each once."""
    low = whole.min()
    if whole.max() - low > 1 << 16:
        return np.unique(whole)
    return np.flatnonzero(np.bincount((whole - low).astype(np.int32).ravel())) + low


def check_classes(values: list[int], classes: int | None) -> None:
    """Refuse values that are no classes.

    Raises:
        LabelError: naming them.
    """
    allowed = classes if classes is not None else 1 << 24
    wrong = [value for value in values if not 0 <= value < allowed]
    if wrong:
        shown = ", ".join(map(str, wrong[:5])) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        due = f"the task has classes 0 to {classes - 1}" if classes is not None else "classes are 0 and above"
        raise LabelError(f"the label holds the values {shown}; {due}. Map them, or correct the task")
