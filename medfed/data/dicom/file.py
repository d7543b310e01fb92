"""One DICOM file: the elements of its header, its transfer syntax, and the location of its pixels."""

from __future__ import annotations

import os
import stat
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from medfed.data.dicom.elements import UNDEFINED, VRS, Elements, TruncatedHeader
from medfed.data.dicom.tags import PIXEL_TAGS
from medfed.data.size_limits import MAX_RATIO, UNLIMITED_RATIO_BYTES
from medfed.errors import ImageError

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = frozenset((IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN))

# How many bytes are read, growing until the header is complete. Most headers are shorter than the first; that
# of an enhanced object of 10,000 frames takes about 30 MB.
_HEADER_READS = (1 << 14, 1 << 18, 1 << 22, 1 << 26, 1 << 30)
# A larger deflated header was made to cost time: empty items deflate 1000 times.
_MAX_DEFLATED_HEADER = 1 << 26
_META_VRS = (b"OB", b"OW", b"UN", b"SQ", b"UT", b"UC", b"UR")


@dataclass(frozen=True, slots=True)
class DicomFile:
    """A DICOM file whose header was read; its pixels are read on demand."""

    path: str
    elements: Elements
    syntax: str  # transfer syntax UID
    start: int  # offset of the dataset; in a deflated file, elements have offsets into the inflated data
    size: int
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # cached by pixel readers

    @property
    def big_endian(self) -> bool:
        """Whether numbers are stored with the high byte first."""
        return self.syntax == BIG_ENDIAN

    @property
    def encapsulated(self) -> bool:
        """Whether the pixels are stored in compressed fragments."""
        return self.syntax not in NATIVE

    def pixels(self) -> tuple[int, int, int]:
        """Return the tag, offset and length of the pixel data.

        Raises:
            ImageError: if there are none, or the file ends before they do.
        """
        for tag in PIXEL_TAGS:
            if tag in self.elements:
                at, length, _ = self.elements.where(tag)
                if (length == UNDEFINED) != self.encapsulated:
                    kind = "compressed" if self.encapsulated else "uncompressed"
                    raise ImageError(
                        f"the transfer syntax says {kind} pixels, the pixel data are not; file damaged"
                    )
                if self.syntax != DEFLATED and length != UNDEFINED and at + length > self.size:
                    raise ImageError(
                        f"truncated: the pixel data announce {length} bytes, the file holds {self.size - at};"
                        " copy the file again"
                    )
                return tag, at, length
        raise ImageError("an image without pixel data; the file is truncated or damaged, copy it again")

    def read(self, at: int, length: int) -> bytes:
        """Return bytes of the file, or of the inflated data of a deflated file.

        Raises:
            ImageError: if it holds fewer.
        """
        if self.syntax == DEFLATED:
            data = self._unpacked(at + length)[at : at + length]
        else:
            data = _read(self.path, at, length)
        if len(data) < length:
            raise ImageError(
                f"truncated: {length} bytes are announced, {len(data)} are present; copy it again"
            )
        return data

    def _unpacked(self, length: int) -> bytes:
        if len(self.memo.get("unpacked", b"")) < length:
            # All frames at once, so that a frame does not inflate those before it again.
            _, at, size = self.pixels()
            packed = _read(self.path, 0, self.size)
            self.memo["unpacked"], _ = inflate(packed, self.start, max(length, at + size))
        unpacked: bytes = self.memo["unpacked"]
        return unpacked


def _read(path: str, at: int, length: int) -> bytes:
    """Return `length` bytes of a file, fewer if it ends."""
    with open(path, "rb") as file:
        file.seek(at)
        return file.read(length)


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts with the DICOM preamble and prefix (PS3.10)."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def open_dicom(path: str) -> DicomFile | None:
    """Return a file with its header parsed, or None if it is not a DICOM file.

    Raises:
        ImageError: if it is a DICOM file, but empty, truncated or damaged.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        return None
    size = status.st_size
    for length in _HEADER_READS:
        data = _read(path, 0, length)
        with suppress(TruncatedHeader):
            return _parse(path, data, size)
        if len(data) >= size:
            raise ImageError(
                f"truncated: the header extends beyond the {size} bytes of the file; copy it again"
            )
    raise ImageError(f"a header of more than {_HEADER_READS[-1] // 1_000_000} MB; the file is damaged")


def _parse(path: str, data: bytes, size: int) -> DicomFile | None:
    start = _dataset_start(data)
    if start is None:
        return None
    syntax, start = _meta(data, start)
    whole = len(data) >= size
    if syntax == DEFLATED:
        return DicomFile(path, _deflated(data, start, size, whole), syntax, start, size)
    explicit, little = _encoding(data, start, syntax)
    if syntax in NATIVE or not syntax:
        syntax = BIG_ENDIAN if not little else EXPLICIT if explicit else IMPLICIT
    elements = Elements(data, start, len(data), little=little, explicit=explicit)
    if not whole and not any(tag in elements for tag in PIXEL_TAGS):
        raise TruncatedHeader
    return DicomFile(path, elements, syntax, start, size)


def _deflated(data: bytes, start: int, size: int, whole: bool) -> Elements:
    """Return the elements of a deflated dataset, from its first 64 kB if they suffice."""
    for bound in (1 << 16, _MAX_DEFLATED_HEADER):
        unpacked, ended = inflate(data, start, bound, complete=False)
        try:
            elements = Elements(unpacked, 0, len(unpacked), little=True, explicit=True)
        except TruncatedHeader:
            continue
        if ended or any(tag in elements for tag in PIXEL_TAGS):
            return elements
    if whole:
        raise ImageError("truncated: the deflated data end before the header does; copy the file again")
    raise TruncatedHeader


def _dataset_start(data: bytes) -> int | None:
    if data[128:132] == b"DICM":
        return 132
    if _plausible(data, 0, meta_only=False):
        return 0
    if _plausible(data, 132, meta_only=True):
        raise ImageError("the file lacks the word DICM before its DICOM header; it is damaged, copy it again")
    return None


def _plausible(data: bytes, at: int, *, meta_only: bool) -> bool:
    """Whether a dataset could start here: group 2 or 8, with a known representation or a short length."""
    head = data[at : at + 8]
    if len(head) < 8:
        return False
    group, explicit = head[:2], head[4:6] in VRS
    if explicit:
        return group == b"\2\0" or (not meta_only and group in (b"\0\x08", b"\x08\0"))
    return not meta_only and group == b"\x08\0" and int.from_bytes(head[4:8], "little") < 256


def _meta(data: bytes, at: int) -> tuple[str, int]:
    """Return the transfer syntax and the offset after the file meta elements (explicit little endian)."""
    syntax = ""
    while data[at : at + 2] == b"\2\0":
        if at + 12 > len(data):
            raise TruncatedHeader
        vr = data[at + 4 : at + 6]
        if vr not in VRS:
            raise ImageError("the file meta header is damaged; copy the file again")
        if vr in _META_VRS:
            length, value = int.from_bytes(data[at + 8 : at + 12], "little"), at + 12
        else:
            length, value = int.from_bytes(data[at + 6 : at + 8], "little"), at + 8
        if value + length > len(data):
            raise TruncatedHeader
        if data[at + 2 : at + 4] == b"\x10\0":
            raw = data[value : value + length].strip(b" \0")
            syntax = raw.decode("ascii", "replace")
        at = value + length
    if syntax and (not syntax.startswith("1.2.840.10008.1.2") or set(syntax) - set("0123456789.")):
        raise ImageError(
            "a transfer syntax that is not DICOM's own; export the images as Explicit VR Little Endian"
        )
    return syntax, at


def _encoding(data: bytes, at: int, syntax: str) -> tuple[bool, bool]:
    """Return whether the dataset has explicit value representations, and whether it is little endian.

    Some files are explicit although their meta header says implicit, and the reverse; the data decide.
    """
    if at + 8 > len(data):
        raise TruncatedHeader
    explicit = data[at + 4 : at + 6] in VRS
    high_byte_first = data[at] == 0 and data[at + 1] != 0
    if high_byte_first and syntax not in ("", BIG_ENDIAN):
        raise ImageError(
            "the transfer syntax says little endian, the data are big endian; the file is damaged"
        )
    return explicit, not high_byte_first and syntax != BIG_ENDIAN


def inflate(data: bytes, start: int, length: int, *, complete: bool = True) -> tuple[bytes, bool]:
    """Return up to `length` inflated bytes of data[start:], and whether these are all.

    Raises:
        ImageError: if the data are damaged, expand like a bomb, or (if `complete`) are too few.
    """
    packed = len(data) - start
    if complete and length > max(UNLIMITED_RATIO_BYTES, MAX_RATIO * packed):
        raise ImageError(
            f"{packed} bytes would unpack to {length}; real images grow less than {MAX_RATIO} times"
        )
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        unpacked = stream.decompress(memoryview(data)[start:], min(length, 1 << 32))
    except zlib.error:
        raise ImageError("the deflated data are damaged; copy the file again") from None
    if complete and len(unpacked) < length:
        raise ImageError(
            f"truncated: unpacks to {len(unpacked)} bytes where {length} are announced; copy it again"
        )
    return unpacked, stream.eof
