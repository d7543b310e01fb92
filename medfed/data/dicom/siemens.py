"""Siemens mosaics, described by private elements: one image that holds all slices of a volume as tiles.

The tiles stand in rows from the top left, in a square that is just large enough. ImagePositionPatient is the
corner of the whole image, laid so that its centre is that of the first slice. The CSA header gives the number
of slices and the direction in which they follow each other. (Siemens' headers are not documented; this is
what nibabel's and dcm2niix's authors found, and the tests compare with dcm2niix.)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from medfed.data.dicom import tags
from medfed.data.dicom.elements import Elements
from medfed.errors import ImageError

_TILES = 0x0019100A
_CSA_IMAGE, _CSA_SERIES = 0x00291010, 0x00291020
_MAGIC = b"SV10\4\3\2\1"
_CHECK = (77, 205)  # stands behind each element's head
# A CSA header of more elements, or elements of more values, is damaged.
_MAX_ELEMENTS, _MAX_VALUES = 1000, 10_000
# How far the direction of the slices may be off the normal of the image; it is written with eight decimals.
NORMAL_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Mosaic:
    """The slices of a mosaic. Positions are LPS.

    count: of slices.  across: how many tiles stand in a row.  step_mm: from a slice to the next.
    """

    count: int
    across: int
    step_mm: tuple[float, float, float]


def is_mosaic(header: Elements) -> bool:
    """Whether an image is a mosaic; anonymisation may have removed the word MOSAIC from its ImageType."""
    if b"MOSAIC" in header.text(tags.IMAGE_TYPE).upper():
        return True
    if _TILES in header and b"SIEMENS" in header.text(0x00190010):
        value = header.raw(_TILES)
        if len(value) == 2 and int.from_bytes(value, "little") > 1:
            return True
    return any(_csa_count(header.raw(tag)) > 1 for tag in (_CSA_IMAGE, _CSA_SERIES) if tag in header)


def mosaic_slices(header: Elements) -> int:
    """Return the number of slices that a mosaic announces, 0 if its private elements are gone."""
    tiles = header.raw(_TILES)
    public = int.from_bytes(tiles, "little") if len(tiles) == 2 else 0
    return max(public, *(_csa_count(header.raw(tag)) for tag in (_CSA_IMAGE, _CSA_SERIES)))


def find_mosaic(header: Elements) -> Mosaic | None:
    """Return the slices of a mosaic, or None if the image is none.

    Raises:
        ImageError: if it is one, and what it says of its slices is missing or contradictory.
    """
    if not is_mosaic(header):
        return None
    csa = read_csa(header.raw(_CSA_IMAGE))
    count = _numbers(csa, "NumberOfImagesInMosaic")
    normal = _numbers(csa, "SliceNormalVector")
    spacing = header.number(tags.SLICE_GAP)
    if len(count) != 1 or count[0] < 1 or len(normal) != 3 or not spacing or spacing < 0:
        raise ImageError(
            "a Siemens mosaic: one image holds all slices as tiles, and the private elements that describe"
            " them (CSA header), or SpacingBetweenSlices, are missing; export it with them, or convert it"
            " with dcm2niix"
        )
    if any(_numbers(csa, "ProtocolSliceNumber")):
        raise ImageError("a Siemens mosaic whose first tile is not the first slice; convert it with dcm2niix")
    _check_normal(header.numbers(tags.ORIENTATION, 6), normal)
    x, y, z = (spacing * part for part in normal)
    return Mosaic(int(count[0]), math.ceil(math.sqrt(count[0])), (x, y, z))


def _check_normal(axes: tuple[float, ...], normal: tuple[float, ...]) -> None:
    """Refuse slices that do not follow each other along the normal of the image, in either direction."""
    if len(axes) != 6:
        return  # refused with the other geometry
    a, b, c, d, e, f = axes
    cosine = sum(x * y for x, y in zip((b * f - c * e, c * d - a * f, a * e - b * d), normal, strict=True))
    if abs(abs(cosine) - 1) > NORMAL_TOLERANCE:
        raise ImageError(
            "a Siemens mosaic whose private SliceNormalVector is not the normal of the image; export it again"
        )


def read_csa(csa: bytes) -> dict[str, tuple[str, ...]]:
    """Return the elements of a CSA header (version 2) by name; none if it is missing or damaged."""
    elements: dict[str, tuple[str, ...]] = {}
    if not csa.startswith(_MAGIC):
        return elements
    try:
        (count,) = struct.unpack_from("<I", csa, 8)
        at = 16
        for _ in range(min(count, _MAX_ELEMENTS)):
            name, _vm, _vr, _, items, check = struct.unpack_from("<64si4siii", csa, at)
            at += 84
            if check not in _CHECK or not 0 <= items <= _MAX_VALUES:
                return {}
            values = []
            for _ in range(items):
                length = struct.unpack_from("<4i", csa, at)[1]
                at += 16
                if not 0 <= length <= len(csa) - at:
                    return {}
                values.append(csa[at : at + length].split(b"\0")[0].strip().decode("latin-1"))
                at += -(-length // 4) * 4
            elements[name.split(b"\0")[0].decode("latin-1")] = tuple(value for value in values if value)
    except struct.error:
        return {}
    return elements


def _numbers(csa: Mapping[str, tuple[str, ...]], name: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, csa.get(name, ())))
    except ValueError:
        return ()


def _csa_count(csa: bytes) -> int:
    """Return the number of tiles in a CSA header: a name of 64 bytes, the number of items, the items."""
    at = csa.find(b"NumberOfImagesInMosaic\0")
    if at < 0 or at + 100 > len(csa):
        return 0
    items = struct.unpack_from("<i", csa, at + 76)[0]
    if items < 1:
        return 0
    digits = csa[at + 100 : at + 112].split(b"\0")[0].strip()
    return int(digits) if digits.isdigit() else 0
