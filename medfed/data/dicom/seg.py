"""DICOM segmentations on a volume's grid: every frame is placed by its own position."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.dicom import tags
from medfed.data.dicom.elements import Elements, functional_groups
from medfed.data.dicom.file import DicomFile
from medfed.data.dicom.frame import Encoding, check_stored_bits, parse_encoding
from medfed.data.dicom.pixels import has_swapped_bytes, read_words, sign_extend
from medfed.data.dicom.structures import structures_of
from medfed.data.identity_digest import identity_digests
from medfed.data.label_regions import check_classes, check_same_patient, paint_regions
from medfed.data.read_options import LabelOptions
from medfed.data.size_limits import check_size
from medfed.data.volume import Volume
from medfed.errors import LabelError

# Returns a frame's functional group of a sequence.
Group = Callable[[int], Elements]
# A frame whose pixels are off by more than this fraction of a voxel is on another grid.
POSITION_TOLERANCE_VOXELS = 0.05


def read_segmentation(file: DicomFile, like: Volume, options: LabelOptions) -> Volume:
    """Return a segmentation as class numbers on the grid of `like`.

    A voxel of a fractional segment belongs to it if its fraction is at least one half.

    Raises:
        LabelError: if a frame does not lie on the volume's voxels, or a segment is not a class of the task.
    """
    header = file.elements
    series = [item.text(tags.SERIES_UID) for item in header.items(tags.REFERENCED_SERIES)]
    identities = identity_digests(header.text(tags.PATIENT_ID), [header.text(tags.FRAME_UID)], series)
    flags = check_same_patient(like, identities)
    if header.text(tags.SEGMENTATION_TYPE) not in (b"BINARY", b"FRACTIONAL", b"LABELMAP"):
        raise LabelError(
            "a segmentation that is neither binary nor fractional nor a label map; export it again"
        )
    classes = options.classes_of(structures_of(file))
    skipped = [
        f"segment {number}, which the given names omit" for number, value in classes.items() if value is None
    ]
    check_classes([value for value in classes.values() if value is not None], options.classes)
    return paint_regions(_regions(file, classes, like), like, options.overlap, skipped, flags)


def _regions(
    file: DicomFile, classes: dict[int, int | None], like: Volume
) -> dict[int, list[NDArray[np.int64]]]:
    """Return the voxels of each class, as flat indices into `like`; `classes` maps segments to classes."""
    header = file.elements
    encoding = _encoding(file)
    frames = header.items(tags.PER_FRAME)
    if len(frames) != encoding.frames:
        raise LabelError(
            f"{encoding.frames} frames are announced, {len(frames)} have a position; the file is damaged"
        )
    shared = header.first(tags.SHARED)
    regions: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
    for index, frame in enumerate(frames):
        group = functional_groups(frame, shared)
        for segment, mask in _masks(_plane(file, encoding, index), group, header):
            if segment not in classes:
                raise LabelError(
                    f"a frame belongs to segment {segment}, which the file does not describe; file damaged"
                )
            value = classes[segment]
            if value and mask.any():
                regions[value].append(_voxel_indices(mask, group, encoding, like))
    return regions


def _masks(plane: NDArray[Any], group: Group, header: Elements) -> list[tuple[int, NDArray[np.bool_]]]:
    """Return the segments of a frame, each with its pixels."""
    if header.text(tags.SEGMENTATION_TYPE) == b"LABELMAP":
        return [(int(segment), plane == segment) for segment in np.unique(plane[plane != 0])]
    number = group(tags.SEGMENT_IDENTIFICATION).integer(tags.REFERENCED_SEGMENT)
    if number is None:
        raise LabelError("a frame does not say which segment it belongs to; the file is damaged")
    return [(number, _binary(plane, header))]


def _encoding(file: DicomFile) -> Encoding:
    encoding = replace(parse_encoding(file), signed=False)
    sizes = encoding.rows, encoding.columns, file.elements.count(tags.FRAMES) or 0
    if min(sizes) < 1 or encoding.allocated not in (1, 8, 16):
        raise LabelError(
            "the segmentation's header lacks its size, or its bits are not 1, 8 or 16; the file is damaged"
        )
    check_stored_bits(encoding)
    check_size(encoding.pixels * encoding.frames, file.size, encoding.pixels, "a segmentation")
    return encoding


def _plane(file: DicomFile, encoding: Encoding, index: int) -> NDArray[Any]:
    """Return a frame's stored values, (rows, columns)."""
    if encoding.allocated != 1:
        return sign_extend(read_words(file, encoding, index), encoding)
    if file.encapsulated:
        return read_words(file, encoding, index)
    expected = (encoding.pixels * encoding.frames + 7) // 8
    if encoding.length not in (expected, expected + expected % 2):
        raise LabelError(
            f"the pixel data hold {encoding.length} bytes, {encoding.frames} frames need {expected};"
            " truncated"
        )
    # Frames follow each other bit by bit and need not start at a byte.
    first, last = index * encoding.pixels, (index + 1) * encoding.pixels
    begin, end = first // 16 * 2, min((last + 15) // 16 * 2, encoding.length)
    packed = np.frombuffer(file.read(encoding.at + begin, end - begin), np.uint8)
    packed = packed.view("<u2").byteswap().view(np.uint8) if has_swapped_bytes(file) else packed
    bits = np.unpackbits(packed, bitorder="little")
    return bits[first - 8 * begin :][: encoding.pixels].reshape(encoding.shape)


def _binary(plane: NDArray[Any], header: Elements) -> NDArray[np.bool_]:
    """Return the pixels of a binary or fractional segment."""
    if header.text(tags.SEGMENTATION_TYPE) == b"BINARY":
        return np.asarray(plane != 0)
    maximum = header.integer(tags.MAX_FRACTION)
    if not maximum:
        raise LabelError("a fractional segmentation without MaximumFractionalValue; export it again")
    if int(plane.max()) > maximum:
        raise LabelError("a fraction exceeds MaximumFractionalValue; the file is damaged")
    return np.asarray(plane.astype(np.int64) * 2 >= maximum)


def _voxel_indices(
    mask: NDArray[np.bool_], group: Group, encoding: Encoding, like: Volume
) -> NDArray[np.int64]:
    """Return the flat indices of the volume's voxels under a frame's pixels.

    Raises:
        LabelError: if the frame has no position, or its pixels lie between or outside the voxels.
    """
    to_like = np.linalg.solve(like.affine_ras, _frame_to_ras(group))[:3]
    exact = np.rint(to_like)
    corners = np.array([[r, c, 1.0] for r in (0, encoding.rows - 1) for c in (0, encoding.columns - 1)]).T
    off = np.abs((to_like - exact) @ corners).max(axis=1)
    if off.max() > POSITION_TOLERANCE_VOXELS or not np.array_equal(np.abs(exact[:, :2]).sum(axis=0), [1, 1]):
        off_mm = off * like.spacing_mm
        raise LabelError(
            f"a frame of the segmentation does not lie on the image's voxels: it is {off_mm.max():.2f} mm"
            " off; take the segmentation of this image, or resample it"
        )
    rows, columns = np.nonzero(mask)
    voxels = (exact @ np.stack([rows, columns, np.ones_like(rows)])).astype(np.int64)
    shape = np.array(like.shape)[:, None]
    if (voxels < 0).any() or (voxels >= shape).any():
        low, high = voxels.min(axis=1), voxels.max(axis=1)
        beyond_mm = np.maximum(-low, high - shape[:, 0] + 1) * like.spacing_mm
        raise LabelError(
            f"the segmentation reaches {beyond_mm.max():.1f} mm beyond the image; take the segmentation of"
            " this image"
        )
    return np.asarray(np.ravel_multi_index(tuple(voxels), like.shape))


def _frame_to_ras(group: Group) -> NDArray[np.float64]:
    """Return the matrix (4, 3) from a frame's (row, column, 1) to RAS mm."""
    position = group(tags.PLANE_POSITION).numbers(tags.POSITION)
    cosines = group(tags.PLANE_ORIENTATION).numbers(tags.ORIENTATION)
    spacing = group(tags.PIXEL_MEASURES).numbers(tags.PIXEL_SPACING)
    if len(position) != 3 or len(cosines) != 6 or len(spacing) != 2:
        raise LabelError(
            "a frame lacks its position, orientation or pixel spacing; export the segmentation again"
        )
    to_mm = np.zeros((4, 3))
    to_mm[:3, 0] = np.asarray(cosines[3:]) * spacing[0]
    to_mm[:3, 1] = np.asarray(cosines[:3]) * spacing[1]
    to_mm[:3, 2] = position
    to_mm[3, 2] = 1
    to_mm[:2] *= -1  # LPS to RAS
    return to_mm
