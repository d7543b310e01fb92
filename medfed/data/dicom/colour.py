"""DICOM images in colour as planes of three channels: red, green and blue, as PNG and JPEG have them.

Ultrasound, dermoscopy, fundus and other photographs come as RGB, YBR_FULL, YBR_FULL_422 or PALETTE COLOR
(PS3.3 C.7.6.3.1.2), uncompressed or compressed. Whatever is stored, the values are RGB from 0 to 255: a study
in which one hospital stores RGB, another YBR and a third a palette trains on one scale. A palette of 16 bits
is therefore divided by 256, and a palette of greys has one channel, as that of a PNG.

Only a file that is named itself (by a table, a folder of classes, a pattern) or lies in a folder without
other images is read: among the slices of a volume a colour image is a secondary capture, and left out.

X runs along the columns and Y along the rows. With PixelSpacing the plane is in mm, like a radiograph, else
in pixels, like a picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.dicom import tags
from medfed.data.dicom.elements import Elements, describe_tag
from medfed.data.dicom.encapsulated import JPEG_2000
from medfed.data.dicom.file import DEFLATED, DicomFile
from medfed.data.dicom.frame import (
    MODALITIES,
    Encoding,
    check_stored_bits,
    declared_flags,
    parse_encoding,
    pixel_spacing,
)
from medfed.data.dicom.pixels import decode_packed, has_swapped_bytes, read_words, sign_extend
from medfed.data.dicom.suppress_logs import suppress_dicom_logs
from medfed.data.identity_digest import identity_digests
from medfed.data.read_options import ReadOptions
from medfed.data.size_limits import MAX_DICOM_RATIO, check_size
from medfed.data.volume import COLOUR, Info, Volume
from medfed.errors import ImageError

_RGB, _YBR, _YBR_422, _PALETTE = b"RGB", b"YBR_FULL", b"YBR_FULL_422", b"PALETTE COLOR"
# Of JPEG 2000 streams, whose decoder returns RGB.
_YBR_2000 = (b"YBR_ICT", b"YBR_RCT")
# The components of a JPEG that are called R, G and B are not YBR, whatever the header says.
_RGB_COMPONENTS = (b"RGB", b"rgb")
# Adobe's marker: its transform is 0 for RGB, 1 for YBR (Adobe Technical Note 5116, section 18).
_ADOBE_LENGTH, _ADOBE_RGB = 14, 0
_LABELS = (b"SEG", b"RTSTRUCT", b"RTDOSE", b"RTPLAN")


def is_colour(file: DicomFile) -> bool:
    """Whether a DICOM file is an image in colour."""
    header = file.elements
    if tags.PIXELS not in header or header.text(tags.MODALITY) in _LABELS:
        return False
    return header.integer(tags.SAMPLES) == 3 or header.text(tags.PHOTOMETRIC) == _PALETTE


def read_colour(file: DicomFile, options: ReadOptions) -> Volume:
    """Return an image in colour as a volume (3, X, Y, 1) of RGB, 0 to 255; of a grey palette (1, X, Y, 1).

    Raises:
        ImageError: if it has several frames, colours of more than 8 bits or of another kind, or is damaged.
    """
    encoding = parse_encoding(file)
    _check(file, encoding, options)
    array = _from_palette(file, encoding) if encoding.photometric == _PALETTE else _colours(file, encoding)
    header = file.elements
    spacing_mm = pixel_spacing(header)
    rows_mm, columns_mm = spacing_mm or (1.0, 1.0)
    flags = ("projection" if spacing_mm else "pixels", "single_slice", *declared_flags(file))
    flags += (COLOUR,) if array.shape[2] == 3 else ()
    modality = header.text(tags.MODALITY)
    identities = identity_digests(
        header.text(tags.PATIENT_ID), [header.text(tags.FRAME_UID)], [header.text(tags.SERIES_UID)]
    )
    info = Info(modality.decode() if modality in MODALITIES else "", (), flags, identities)
    moved = np.ascontiguousarray(array.transpose(2, 1, 0)[..., None], np.float32)
    return Volume(moved, np.diag([-columns_mm, -rows_mm, 1.0, 1.0]), info)


def _check(file: DicomFile, encoding: Encoding, options: ReadOptions) -> None:
    """Refuse what is no single plane of 8 bits, or is too large, before it is decoded.

    Raises:
        ImageError: saying what was found.
    """
    rows, columns = encoding.shape
    if encoding.frames != 1:
        raise ImageError(
            f"a film in colour of {encoding.frames} frames; one frame is read, so store each as an image"
        )
    if rows < 1 or columns < 1:
        raise ImageError(f"a colour picture of {rows} x {columns} pixels; the header is damaged")
    check_stored_bits(encoding)
    samples = 1 if encoding.photometric == _PALETTE else 3
    known = encoding.photometric in (_RGB, _YBR, _YBR_422, _PALETTE) or (
        encoding.photometric in _YBR_2000 and file.syntax in JPEG_2000
    )
    if not known or encoding.samples != samples:
        raise ImageError(
            "a colour picture whose PhotometricInterpretation (0028,0004) is none of RGB, YBR_FULL,"
            " YBR_FULL_422 and PALETTE COLOR, or does not fit its samples per pixel; export it as RGB"
        )
    whole_bytes = encoding.stored == 8 or encoding.photometric == _PALETTE
    if encoding.allocated != 8 or not whole_bytes or encoding.signed:
        raise ImageError(
            f"a colour picture of {encoding.allocated} bits allocated, {encoding.stored} stored; colours of 8"
            " bits without a sign are read, export it so"
        )
    packed = file.size if file.encapsulated or file.syntax == DEFLATED else None
    voxels = 3 * rows * columns
    check_size(voxels, packed, voxels, "a colour picture", options.max_bytes, max_ratio=MAX_DICOM_RATIO)


def _colours(file: DicomFile, encoding: Encoding) -> NDArray[np.uint8]:
    """Return a frame's colours, (rows, columns, 3), as RGB."""
    if not file.encapsulated:
        stored, photometric = _native(file, encoding), encoding.photometric
    else:
        packed, stored = decode_packed(file, encoding)
        photometric = _photometric(packed, file, encoding)
    if photometric not in (_YBR, _YBR_422):
        return stored
    from pydicom.pixels.processing import convert_color_space

    with suppress_dicom_logs():
        return np.asarray(convert_color_space(stored, "YBR_FULL", "RGB"))


def _photometric(packed: bytes, file: DicomFile, encoding: Encoding) -> bytes:
    """Return what a decoded frame's three samples are; its codestream says more than the header.

    As in pydicom: components called RGB are RGB, and a JFIF file is YBR (https://www.w3.org/Graphics/JPEG).

    Raises:
        ImageError: if Adobe's marker contradicts the header, so that one of them has the wrong colours.
    """
    if file.syntax in JPEG_2000 and encoding.photometric in _YBR_2000:
        return _RGB
    if packed[:2] != b"\xff\xd8":
        return encoding.photometric
    components, is_jfif, adobe = _jpeg_colours(packed)
    if components in _RGB_COMPONENTS:
        return _RGB
    photometric = _YBR if is_jfif else encoding.photometric
    if adobe is not None and (adobe == _ADOBE_RGB) != (photometric == _RGB):
        raise ImageError(
            "PhotometricInterpretation (0028,0004) and the compressed image disagree whether its colours are"
            " RGB or YBR; export the image uncompressed"
        )
    return photometric


def _jpeg_colours(packed: bytes) -> tuple[bytes, bool, int | None]:
    """Return the names of a JPEG's components, a byte each, whether it is JFIF, and Adobe's transform."""
    at, is_jfif, adobe = 2, False, None
    while at + 16 <= len(packed) and packed[at] == 0xFF:
        marker, length = packed[at + 1], int.from_bytes(packed[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        is_jfif |= marker == 0xE0 and packed[at + 4 : at + 8] == b"JFIF"
        if marker == 0xEE and packed[at + 4 : at + 9] == b"Adobe" and length == _ADOBE_LENGTH:
            adobe = packed[at + 15]
        if marker in (0xF7, *range(0xC0, 0xC4)):
            count = packed[at + 9]
            return packed[at + 10 : at + 10 + 3 * count : 3], is_jfif, adobe
        at += 2 + length
    return b"", is_jfif, adobe


def _native(file: DicomFile, encoding: Encoding) -> NDArray[np.uint8]:
    """Return uncompressed samples as stored, (rows, columns, 3).

    Raises:
        ImageError: if the pixel data are not as long as the header says.
    """
    rows, columns = encoding.shape
    halved = encoding.photometric == _YBR_422
    planar = file.elements.integer(tags.PLANAR) or 0
    expected = (2 if halved else 3) * rows * columns
    if encoding.length not in (expected, expected + expected % 2) or (halved and (columns % 2 or planar)):
        raise ImageError(
            f"the pixel data of a colour picture hold {encoding.length} bytes, {rows} x {columns} pixels need"
            f" {expected}; truncated, or its PhotometricInterpretation is wrong"
        )
    data = np.frombuffer(
        file.read(encoding.at, encoding.length).ljust(expected + expected % 2, b"\0"), np.uint8
    )
    if has_swapped_bytes(file):
        data = data.view("<u2").byteswap().view(np.uint8)
    data = data[:expected]
    if planar:
        return data.reshape(3, rows, columns).transpose(1, 2, 0)
    if not halved:
        return data.reshape(rows, columns, 3)
    pairs = data.reshape(rows, columns // 2, 4)  # two of Y, and the Cb and Cr that both share
    both = np.stack([pairs[..., [0, 2, 3]], pairs[..., [1, 2, 3]]], axis=2)
    return both.reshape(rows, columns, 3)


def _from_palette(file: DicomFile, encoding: Encoding) -> NDArray[np.uint8]:
    """Return a palette's colours, (rows, columns, 3), or its greys, (rows, columns, 1)."""
    stored = sign_extend(read_words(file, encoding, 0), encoding).astype(np.int64)
    channels = [
        _lookup(file.elements, descriptor, data, big_endian=file.big_endian)
        for descriptor, data in zip(tags.PALETTES, tags.PALETTE_DATA, strict=True)
    ]
    grey = all(np.array_equal(one[1], channels[0][1]) for one in channels)
    # PS3.3 C.7.6.3.1.5: a stored value below the first has the first's colour, one above the last the last's.
    colours = [
        entries[np.clip(stored - first, 0, len(entries) - 1)]
        for first, entries in (channels[:1] if grey else channels)
    ]
    return np.stack(colours, axis=-1)


def _lookup(header: Elements, descriptor: int, data: int, *, big_endian: bool) -> tuple[int, NDArray[Any]]:
    """Return the first stored value of one colour's table, and its entries, 0 to 255.

    Raises:
        ImageError: if it is not there, segmented or damaged, or its scale is unknown.
    """
    announced = header.integers(descriptor)
    if len(announced) != 3 or announced[2] not in (8, 16) or data not in header:
        raise ImageError(
            f"{describe_tag(descriptor)} or its table is missing, segmented or damaged; export the image as"
            " RGB"
        )
    count, first, bits = announced[0] or 1 << 16, announced[1], announced[2]
    raw = header.raw(data)
    if len(raw) == 2 * count:
        entries = np.array(header.integers(data))
    elif bits == 8 and len(raw) in (count, count + 1) and not big_endian:
        entries = np.frombuffer(raw, np.uint8)[:count]
    else:
        raise ImageError(
            f"the palette announces {count} entries and holds {len(raw)} bytes; export the image as RGB"
        )
    if (entries.max() > 255) != (bits == 16):
        raise ImageError(
            f"the palette announces {bits} bits and its largest entry is {entries.max()}, so that the scale"
            " of its colours is unknown; export the image as RGB"
        )
    return first, (entries >> 8 if bits == 16 else entries).astype(np.uint8)
