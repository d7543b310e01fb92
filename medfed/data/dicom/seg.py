"""DICOM segmentations on a volume's grid: every frame is placed by its own position, however few
there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from medfed.data.dicom.elements import PIXELS, Elements
from medfed.data.dicom.file import DicomFile, open_dicom
from medfed.data.dicom.frame import (
    ALLOCATED,
    COLUMNS,
    FRAME_UID,
    FRAMES,
    HIGH_BIT,
    ORIENTATION,
    PATIENT_ID,
    PER_FRAME,
    PHOTOMETRIC,
    PIXEL_SPACING,
    POSITION,
    ROWS,
    SERIES_UID,
    SHARED,
    STORED,
    Encoding,
)
from medfed.data.dicom.pixels import meant_bits, raw_words
from medfed.data.identity_digest import marks
from medfed.data.label_regions import check_belonging, class_of, label_of
from medfed.data.size_limits import check_size
from medfed.data.volume import Volume
from medfed.errors import LabelError

SEGMENTS, SEGMENT_NUMBER, SEGMENT_LABEL = 0x00620002, 0x00620004, 0x00620005
SEGMENTATION_TYPE, MAX_FRACTION = 0x00620001, 0x0062000E
IDENTIFICATION, REFERENCED_NUMBER = 0x0062000A, 0x0062000B
REFERENCED_SERIES = 0x00081115
# A frame whose pixels lie further than this part of a voxel from the image's is on another grid.
PLACE_TOLERANCE_VOXELS = 0.05


def segments_on(
    path: str, like: Volume, classes: int | None, names: Mapping[str, int] | None, overlap: str
) -> Volume:
    """Return a segmentation as class numbers on the grid of `like`.

    A fractional segment holds a voxel from one half on.

    Raises:
        LabelError: if a frame does not lie on the volume's voxels, or a segment is no class of the task.
    """
    from medfed.data.label import check_classes

    file = open_dicom(path)
    if file is None:
        raise LabelError("the label is no DICOM file; give the segmentation's file")
    header = file.elements
    series = [item.text(SERIES_UID) for item in header.items(REFERENCED_SERIES)]
    flags = check_belonging(like, marks(header.text(PATIENT_ID), [header.text(FRAME_UID)], series))
    kind = header.text(SEGMENTATION_TYPE)
    if kind not in (b"BINARY", b"FRACTIONAL", b"LABELMAP"):
        raise LabelError(
            "a segmentation that is neither binary nor fractional nor a label map; export it again"
        )
    encoding = _encoding(file)
    places = header.items(PER_FRAME)
    if len(places) != encoding.frames:
        raise LabelError(
            f"{encoding.frames} frames are announced, {len(places)} have a place; the file is damaged"
        )
    titles = {item.integer(SEGMENT_NUMBER): item.text(SEGMENT_LABEL) for item in header.items(SEGMENTS)}
    skipped = []
    numbers = {
        number: class_of(number, title, names) for number, title in titles.items() if number is not None
    }
    for number, chosen in numbers.items():
        if chosen is None:
            skipped.append(f"segment {number}, which the given names leave out")
    check_classes([chosen for chosen in numbers.values() if chosen is not None], classes)
    shared = header.first(SHARED)
    planes = _planes(file, encoding)
    regions: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
    for index, place in enumerate(places):
        groups = (place, shared)
        plane = planes(index)
        if kind == b"LABELMAP":
            owners = [(int(number), plane == number) for number in np.unique(plane[plane != 0])]
        else:
            number = _number(groups)
            owners = [(number, _inside(plane, kind, header))]
        for number, inside in owners:
            if number not in numbers:
                raise LabelError(
                    f"a frame belongs to segment {number}, which the file does not describe; file damaged"
                )
            chosen = numbers[number]
            if chosen and inside.any():
                regions[chosen].append(_placed(inside, groups, encoding, like))
    return label_of(regions, like, overlap, skipped, flags)


def _encoding(file: DicomFile) -> Encoding:
    header = file.elements
    rows, columns, allocated = header.integer(ROWS), header.integer(COLUMNS), header.integer(ALLOCATED)
    frames = header.count(FRAMES)
    if not rows or not columns or not frames or frames < 1 or allocated not in (1, 8, 16):
        raise LabelError(
            "the segmentation's header lacks its size, or its bits are not 1, 8 or 16; file damaged"
        )
    tag, at, length = file.pixels()
    stored = header.integer(STORED) or allocated
    high = header.integer(HIGH_BIT)
    high = stored - 1 if high is None else high
    if not (0 < stored <= allocated and stored - 1 <= high < allocated):
        raise LabelError("the segmentation's stored bits are not possible; the file is damaged")
    check_size(rows * columns * frames, file.size, rows * columns, "a segmentation")
    return Encoding(
        rows, columns, allocated, stored, high, False, header.text(PHOTOMETRIC), frames, tag, at, length
    )


def _planes(file: DicomFile, encoding: Encoding) -> Callable[[int], NDArray]:
    """Return a function from a frame's index to its stored values, (rows, columns)."""
    if encoding.allocated != 1:
        return lambda index: meant_bits(raw_words(file, encoding, index), encoding)
    if file.encapsulated:
        return lambda index: raw_words(file, encoding, index)
    swapped = file.big_endian and file.elements.where(PIXELS)[2] == b"OW"
    size = encoding.rows * encoding.columns
    due = (size * encoding.frames + 7) // 8
    if encoding.length not in (due, due + due % 2):
        raise LabelError(
            f"the pixel data hold {encoding.length} bytes, {encoding.frames} frames need {due}; truncated"
        )

    def plane(index: int) -> NDArray[np.uint8]:
        # Frames follow each other bit by bit and need not begin with a byte.
        first, last = index * size, (index + 1) * size
        begin, end = first // 16 * 2, min((last + 15) // 16 * 2, encoding.length)
        packed = np.frombuffer(file.read(encoding.at + begin, end - begin), np.uint8)
        packed = packed.view("<u2").byteswap().view(np.uint8) if swapped else packed
        bits = np.unpackbits(packed, bitorder="little")
        return bits[first - 8 * begin :][:size].reshape(encoding.rows, encoding.columns)

    return plane


def _number(groups: tuple[Elements | None, ...]) -> int:
    item = _group(groups, IDENTIFICATION)
    number = item.integer(REFERENCED_NUMBER) if item is not None else None
    if number is None:
        raise LabelError("a frame does not say which segment it belongs to; the file is damaged")
    return number


def _group(groups: tuple[Elements | None, ...], sequence: int) -> Elements | None:
    for group in groups:
        item = group.first(sequence) if group is not None else None
        if item is not None:
            return item
    return None


def _inside(plane: NDArray, kind: bytes, header: Elements) -> NDArray[np.bool_]:
    if kind == b"BINARY":
        return plane != 0
    most = header.integer(MAX_FRACTION)
    if not most:
        raise LabelError("a fractional segmentation without MaximumFractionalValue; export it again")
    if int(plane.max()) > most:
        raise LabelError("a fraction exceeds MaximumFractionalValue; the file is damaged")
    return plane.astype(np.int64) * 2 >= most


def _placed(
    inside: NDArray[np.bool_], groups: tuple[Elements | None, ...], encoding: Encoding, like: Volume
) -> NDArray[np.int64]:
    """Return the flat indices of the volume's voxels that a frame's pixels are.

    Raises:
        LabelError: if the frame has no place, or lies between or outside of the voxels.
    """
    place, turn = _group(groups, 0x00209113), _group(groups, 0x00209116)
    measures = _group(groups, 0x00289110)
    position = place.numbers(POSITION) if place is not None else ()
    cosines = turn.numbers(ORIENTATION) if turn is not None else ()
    spacing = measures.numbers(PIXEL_SPACING) if measures is not None else ()
    if len(position) != 3 or len(cosines) != 6 or len(spacing) != 2:
        raise LabelError(
            "a frame lacks its position, orientation or pixel spacing; export the segmentation again"
        )
    to_mm = np.zeros((4, 3))  # (row, column, 1) to LPS mm
    to_mm[:3, 0] = np.asarray(cosines[3:]) * spacing[0]
    to_mm[:3, 1] = np.asarray(cosines[:3]) * spacing[1]
    to_mm[:3, 2] = position
    to_mm[3, 2] = 1
    to_mm[:2] *= -1
    to_like = np.linalg.solve(like.affine_ras, to_mm)[:3]
    exact = np.rint(to_like)
    corners = np.array([[r, c, 1.0] for r in (0, encoding.rows - 1) for c in (0, encoding.columns - 1)]).T
    off = np.abs((to_like - exact) @ corners).max(axis=1)
    if off.max() > PLACE_TOLERANCE_VOXELS or not np.array_equal(np.abs(exact[:, :2]).sum(axis=0), [1, 1]):
        off_mm = off * np.linalg.norm(like.affine_ras[:3, :3], axis=0)
        raise LabelError(
            f"a frame of the segmentation does not lie on the image's voxels: {off_mm.max():.2f} mm"
            " beside them; take the"
            " segmentation of this image, or resample it"
        )
    rows, columns = np.nonzero(inside)
    voxels = (exact @ np.stack([rows, columns, np.ones_like(rows)])).astype(np.int64)
    shape = np.array(like.shape)[:, None]
    if (voxels < 0).any() or (voxels >= shape).any():
        low, high = voxels.min(axis=1), voxels.max(axis=1)
        beyond = np.maximum(-low, high - shape[:, 0] + 1) * np.linalg.norm(like.affine_ras[:3, :3], axis=0)
        raise LabelError(
            f"the segmentation reaches {beyond.max():.1f} mm beyond the image; take the segmentation"
            " of this image"
        )
    return np.ravel_multi_index(tuple(voxels), like.shape)
