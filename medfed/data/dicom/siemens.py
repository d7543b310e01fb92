"""Siemens mosaics, recognised by private elements: one image that holds all slices as tiles."""

from __future__ import annotations

import struct

from medfed.data.dicom.elements import Elements
from medfed.data.dicom.tags import IMAGE_TYPE

_COUNT = b"NumberOfImagesInMosaic"
_TILES = 0x0019100A


def is_mosaic(header: Elements) -> bool:
    """Whether an image is a mosaic; anonymisation may have removed the word MOSAIC from its ImageType."""
    if b"MOSAIC" in header.text(IMAGE_TYPE).upper():
        return True
    if _TILES in header and b"SIEMENS" in header.text(0x00190010):
        value = header.raw(_TILES)
        if len(value) == 2 and int.from_bytes(value, "little") > 1:
            return True
    return any(_csa_count(header.raw(tag)) > 1 for tag in (0x00291010, 0x00291020) if tag in header)


def mosaic_slices(header: Elements) -> int:
    """Return the number of slices that a mosaic announces, at least 1."""
    value = header.raw(_TILES) if _TILES in header else b""
    tiles = int.from_bytes(value, "little") if len(value) == 2 else 0
    return max(1, tiles, *(_csa_count(header.raw(tag)) for tag in (0x00291010, 0x00291020) if tag in header))


def _csa_count(csa: bytes) -> int:
    """Return the number of tiles in a CSA header: a name of 64 bytes, the number of items, the items."""
    at = csa.find(_COUNT + b"\0")
    if at < 0 or at + 100 > len(csa):
        return 0
    items = struct.unpack_from("<i", csa, at + 76)[0]
    if items < 1:
        return 0
    digits = csa[at + 100 : at + 112].split(b"\0")[0].strip()
    return int(digits) if digits.isdigit() else 0
