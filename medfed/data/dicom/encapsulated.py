"""Encapsulated pixel data: the compressed bytes of each frame, and the size in their codestream."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from medfed.data.dicom.elements import ITEM, SEQUENCE_END
from medfed.data.dicom.file import DicomFile
from medfed.data.dicom.frame import Encoding
from medfed.errors import ImageError

RLE = "1.2.840.10008.1.2.5"
JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))
# Markers of the JPEG segments that hold the size of the image.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
# The offset and length of each fragment, and the basic offset table.
Fragments = tuple[tuple[tuple[int, int], ...], tuple[int, ...]]


def frame_bytes(file: DicomFile, encoding: Encoding, index: int) -> bytes:
    """Return the compressed bytes of one frame.

    Raises:
        ImageError: if the fragments are damaged, or do not match the number of frames.
    """
    fragments = _frame_fragments(file, encoding, index)
    announced = encoding.frame_bytes
    if sum(size for _, size in fragments) > 4 * announced + (1 << 20):
        raise ImageError(
            f"a compressed frame is far larger than its announced {announced} bytes; the file is damaged"
        )
    packed = b"".join(file.read(at, size) for at, size in fragments)
    if not packed:
        raise ImageError("a frame without pixel data; the file is damaged")
    return packed


def _frame_fragments(file: DicomFile, encoding: Encoding, index: int) -> Sequence[tuple[int, int]]:
    fragments, offsets = _fragments(file, encoding)
    frames = encoding.frames
    if frames == 1:
        if len(fragments) > 1 and len(_image_starts(file, fragments)) > 1:
            raise ImageError(
                f"{len(fragments)} compressed images where the header announces 1 frame; file damaged"
            )
        return fragments
    if len(fragments) == frames:
        return fragments[index : index + 1]
    if len(offsets) == frames:
        first = offsets[index]
        last = offsets[index + 1] if index + 1 < frames else 1 << 62
        base = fragments[0][0] - 8
        return [(at, size) for at, size in fragments if first <= at - 8 - base < last]
    starts = _image_starts(file, fragments)
    if len(starts) != frames or starts[0] != 0:
        raise ImageError(
            f"{len(fragments)} compressed fragments and {frames} frames, without a table of which belong"
            " together; export the object again"
        )
    return fragments[starts[index] : [*starts, len(fragments)][index + 1]]


def _image_starts(file: DicomFile, fragments: Sequence[tuple[int, int]]) -> list[int]:
    """Return the indices of the fragments that begin a JPEG or JPEG 2000 image."""
    heads = [file.read(at, min(size, 3)) for at, size in fragments]
    return [i for i, head in enumerate(heads) if head in (b"\xff\xd8\xff", b"\xff\x4f\xff")]


def _fragments(file: DicomFile, encoding: Encoding) -> Fragments:
    """Return the offset and length of each fragment, and the basic offset table."""
    if "fragments" in file.memo:
        cached: Fragments = file.memo["fragments"]
        return cached
    fragments: list[tuple[int, int]] = []
    at, size = encoding.at, file.size
    with open(file.path, "rb") as opened:
        while True:
            opened.seek(at)
            head = opened.read(8)
            at += 8
            if len(head) < 8:
                raise ImageError(
                    "truncated: the compressed pixel data end without their delimiter; copy it again"
                )
            group, number, length = struct.unpack("<HHI", head)
            tag = group << 16 | number
            if tag == SEQUENCE_END:
                break
            if tag != ITEM or at + length > size:
                raise ImageError(
                    "truncated: a compressed fragment is damaged or cut off; copy the file again"
                )
            fragments.append((at, length))
            at += length
    if len(fragments) < 2:
        raise ImageError("the compressed pixel data hold no fragment; the file is damaged")
    table = file.read(*fragments[0])
    offsets = struct.unpack(f"<{len(table) // 4}I", table[: len(table) // 4 * 4])
    located = tuple(fragments[1:]), offsets
    file.memo["fragments"] = located
    return located


def check_codestream(packed: bytes, syntax: str, encoding: Encoding) -> None:
    """Refuse a codestream whose size differs from the header's, before a decoder allocates memory for it.

    Raises:
        ImageError: naming both sizes.
    """
    if syntax == RLE:
        return
    size = _size_jpeg_2000(packed) if syntax in JPEG_2000 else _size_jpeg(packed)
    if size is None:
        raise ImageError(
            "the compressed pixels do not start as their transfer syntax requires; the file is damaged"
        )
    rows, columns, components = size
    if (rows, columns) != (encoding.rows, encoding.columns) or components != encoding.samples:
        raise ImageError(
            f"the compressed image is {rows} x {columns} with {components} components, the header announces"
            f" {encoding.rows} x {encoding.columns} with {encoding.samples}; the file is damaged"
        )


def _size_jpeg_2000(packed: bytes) -> tuple[int, int, int] | None:
    at = packed.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0 or len(packed) < at + 42:
        return None
    width, height, left, top, *tile, _, _, components = struct.unpack_from(">8IH", packed, at + 8)
    tile_pixels = tile[0] * tile[1]
    if tile_pixels == 0 or tile_pixels * 64 < (width - left) * (height - top) // 1024:
        return None
    return height - top, width - left, components


def _size_jpeg(packed: bytes) -> tuple[int, int, int] | None:
    if packed[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(packed):
        if packed[at] != 0xFF:
            return None
        marker = packed[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _FRAME_MARKERS:
            rows, columns, components = struct.unpack(">HHB", packed[at + 5 : at + 10])
            return rows, columns, components
        if marker == 0xDA or marker == 0xD9:
            return None
        at += 2 + int.from_bytes(packed[at + 2 : at + 4], "big")
    return None
