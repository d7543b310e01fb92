"""A strict parser of DICOM headers: locates each element and reads values on demand.

pydicom converts every element, quotes values in its warnings and takes 1.7 ms per slice. An image reader
needs thirty elements, an error instead of a guess, and no value in a message. So headers are parsed here
(PS3.5 section 7), bounded by the buffer, and pydicom only decodes compressed pixels. The tests compare
this parser with pydicom.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from medfed.data.dicom.tags import FLOAT_PIXELS, PIXEL_TAGS, PIXELS
from medfed.errors import ImageError

UNDEFINED = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
# Deeper than any object of the standard; a file with deeper nesting was made to exhaust the stack.
MAX_DEPTH = 24
# The longest sequences are per frame: a cine of a whole heart has a few thousand.
MAX_ITEMS = 200_000
_ITEM_LITTLE = b"\xfe\xff\x00\xe0"

_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
VRS = _LONG | _SHORT
# Maximum length of a text or number list; no list that is needed is longer.
_MAX_TEXT = 1 << 16

Number = TypeVar("Number", int, float)


class TruncatedHeader(Exception):
    """The buffer ends before the header does: more of the file is needed, or the file is truncated."""


class Elements:
    """A dataset inside a buffer, with the location of each element; values are read on demand."""

    __slots__ = ("_data", "_depth", "_explicit", "_little", "_where", "end")

    def __init__(
        self,
        data: bytes,
        start: int,
        end: int,
        *,
        little: bool,
        explicit: bool,
        depth: int = 0,
        stop: int = PIXELS,
    ) -> None:
        """Parse the elements of data[start:end], up to and including element `stop`.

        Raises:
            TruncatedHeader: if an element extends beyond `end`.
            ImageError: if this is not a DICOM dataset.
        """
        self._data, self._little, self._explicit, self._depth = data, little, explicit, depth
        self._where: dict[int, tuple[int, int, bytes]] = {}
        self.end = self._parse(start, end, stop)

    def _parse(self, at: int, end: int, stop: int) -> int:
        data, where = self._data, self._where
        head = struct.Struct("<HH2sH" if self._little else ">HH2sH").unpack_from
        tagged = struct.Struct("<HHI" if self._little else ">HHI").unpack_from
        long = struct.Struct("<I" if self._little else ">I").unpack_from
        while at + 8 <= end:
            if self._explicit:
                group, number, vr, length = head(data, at)
                tag = group << 16 | number
                if vr in _SHORT:
                    at += 8
                elif vr in _LONG:
                    if at + 12 > end:
                        raise TruncatedHeader
                    length = long(data, at + 8)[0]
                    at += 12
                elif tag in (ITEM_END, SEQUENCE_END):
                    return at + 8
                else:
                    raise ImageError(
                        f"the header is damaged at byte {at}: a DICOM value representation is missing"
                    )
            else:
                group, number, length = tagged(data, at)
                tag = group << 16 | number
                vr = b""
                at += 8
                if tag in (ITEM_END, SEQUENCE_END):
                    return at
            if tag in where:
                raise ImageError(f"element {describe_tag(tag)} occurs twice; the header is damaged")
            if tag >= FLOAT_PIXELS and stop == PIXELS and tag in PIXEL_TAGS:
                where[tag] = (at, length, vr)
                return at
            if length == UNDEFINED:
                start, at = at, self._skip_items(at, end, vr)
                where[tag] = (start, at - start, b"SQ" if vr in (b"", b"SQ") else vr)
            else:
                where[tag] = (at, length, vr)
                at += length
                if at > end:
                    raise TruncatedHeader
        if at != end:
            raise TruncatedHeader
        return at

    def __contains__(self, tag: int) -> bool:
        return tag in self._where

    def tags(self) -> Iterator[int]:
        """Return the tags in the order of the file."""
        return iter(self._where)

    def where(self, tag: int) -> tuple[int, int, bytes]:
        """Return the offset of a value, its length and its value representation."""
        return self._where[tag]

    def raw(self, tag: int) -> bytes:
        """Return a value's bytes, or empty bytes if the element is absent."""
        at, length, _ = self._where.get(tag, (0, 0, b""))
        return bytes(self._data[at : at + length])

    def text(self, tag: int) -> bytes:
        """Return a text without its padding, as bytes: comparing it needs no character set."""
        return self.raw(tag).strip(b" \0")

    def texts(self, tag: int) -> tuple[bytes, ...]:
        """Return the values of a list of texts, or none if it is empty or absent."""
        value = self.text(tag)
        return tuple(part.strip(b" \0") for part in value.split(b"\\")) if value else ()

    def numbers(self, tag: int, expected: int | None = None) -> tuple[float, ...]:
        """Return the numbers of a DS, IS, FD or FL element, or none if it is empty or absent.

        Raises:
            ImageError: if one of them is not a finite number, such as '1,0', or there are not as many as
                `expected`.
        """
        raw = self.raw(tag)
        if len(raw) > _MAX_TEXT:
            raise ImageError(f"{describe_tag(tag)} is {len(raw)} bytes long; the header is damaged")
        vr = self._where[tag][2] if tag in self._where else b""
        code = "d" if vr in (b"", b"UN") and tag in _DOUBLES else _BINARY.get(vr)
        text = raw.strip(b" \0")
        values: tuple[float, ...] = ()
        if code is not None:
            values = self._unpack(tag, raw, code)
        elif text:
            values = tuple(_number(part, tag) for part in text.split(b"\\"))
        if not all(map(math.isfinite, values)):
            raise ImageError(
                f"{describe_tag(tag)} holds a value that is not a finite number; correct or leave out this"
                " object"
            )
        if values and expected is not None and len(values) != expected:
            raise ImageError(f"{describe_tag(tag)} holds {len(values)} numbers, {expected} are expected")
        return values

    def number(self, tag: int) -> float | None:
        """Return a single number, or None if the element is empty or absent.

        Raises:
            ImageError: if there are several, or it is not a finite number.
        """
        return _single(self.numbers(tag), tag)

    def integers(self, tag: int, code: str = "H") -> tuple[int, ...]:
        """Return the values of a US (code H), SS (h), UL (I) or AT (H) element."""
        return tuple(int(value) for value in self._unpack(tag, self.raw(tag), code))

    def integer(self, tag: int, code: str = "H") -> int | None:
        """Return a US element's one value, or None if it is empty or absent.

        Raises:
            ImageError: if there are several.
        """
        return _single(self.integers(tag, code), tag)

    def count(self, tag: int) -> int | None:
        """Return a whole number written as text (IS), or None if the element is empty or absent.

        Raises:
            ImageError: if it is not whole.
        """
        value = self.number(tag)
        if value is not None and value != int(value):
            raise ImageError(f"{describe_tag(tag)} is not a whole number")
        return None if value is None else int(value)

    def items(self, tag: int) -> list[Elements]:
        """Return the items of a sequence, or none if it is absent.

        Raises:
            ImageError: if the sequence is damaged or nested too deep.
        """
        if tag not in self._where:
            return []
        start, length, vr = self._where[tag]
        # An item takes a few hundred bytes of memory but eight in a file; no sequence of an image
        # has so many.
        if length > 8 * MAX_ITEMS and self._data.count(_ITEM_LITTLE, start, start + length) > MAX_ITEMS:
            raise ImageError(
                f"the sequence {describe_tag(tag)} has more than {MAX_ITEMS} items; the file is damaged"
            )
        items = []
        try:
            for first, last, item in self._iter_items(start, start + length, vr):
                items.append(item or self._item(first, last, vr))
        except TruncatedHeader:
            raise ImageError(f"the sequence {describe_tag(tag)} is cut off; the header is damaged") from None
        return items

    def first(self, tag: int) -> Elements:
        """Return a sequence's first item, or `EMPTY` if it has none."""
        items = self.items(tag)
        return items[0] if items else EMPTY

    def _item(self, start: int, end: int, vr: bytes) -> Elements:
        # PS3.5 6.2.2: a UN of undefined length is implicit little endian, whatever surrounds it.
        unknown = vr == b"UN"
        little, explicit = self._little or unknown, self._explicit and not unknown
        return Elements(
            self._data, start, end, little=little, explicit=explicit, depth=self._depth + 1, stop=-1
        )

    def _iter_items(self, at: int, end: int, vr: bytes) -> Iterator[tuple[int, int, Elements | None]]:
        """Yield the offset and end of each item of a sequence, until its delimiter or `end`.

        An item of undefined length ends at its own delimiter, which only parsing it finds, so that its
        elements are yielded, too.
        """
        if self._depth >= MAX_DEPTH:
            raise ImageError(f"sequences are nested more than {MAX_DEPTH} deep; the header is damaged")
        tagged = struct.Struct("<HHI" if self._little or vr == b"UN" else ">HHI").unpack_from
        while at + 8 <= end:
            group, number, length = tagged(self._data, at)
            tag = group << 16 | number
            at += 8
            if tag == SEQUENCE_END:
                return
            if tag != ITEM:
                raise ImageError(f"the header is damaged at byte {at}: a sequence item is missing")
            item = self._item(at, end, vr) if length == UNDEFINED else None
            start, at = at, at + length if item is None else item.end
            if at > end:
                raise TruncatedHeader
            yield start, at, item

    def _skip_items(self, at: int, end: int, vr: bytes) -> int:
        """Return the offset after a sequence (or encapsulated value) of undefined length."""
        for _, last, _ in self._iter_items(at, end, vr):
            at = last
        if at + 8 > end:  # without the delimiter, which ends the items
            raise TruncatedHeader
        return at + 8

    def _unpack(self, tag: int, raw: bytes, code: str) -> tuple[Any, ...]:
        size = struct.calcsize(code)
        if len(raw) % size:
            raise ImageError(
                f"{describe_tag(tag)} is {len(raw)} bytes long, which is not a multiple of {size}"
            )
        return struct.unpack(f"{'<' if self._little else '>'}{len(raw) // size}{code}", raw)


# The items of an absent sequence.
EMPTY = Elements(b"", 0, 0, little=True, explicit=True)


def functional_groups(own: Elements, shared: Elements) -> Callable[[int], Elements]:
    """Return a function from a sequence to a frame's functional group: its own, else the shared one."""

    def group(sequence: int) -> Elements:
        item = own.first(sequence)
        return shared.first(sequence) if item is EMPTY else item

    return group


# How numbers are packed, by their value representation.
_BINARY = {b"FD": "d", b"FL": "f", b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i"}
# Elements of value representation FD, which an implicit file does not state.
_DOUBLES = frozenset(
    (0x00409224, 0x00409225, 0x00189087, 0x00189089, 0x00189082, 0x00209153, 0x0020930D, 0x00189079)
)
_NUMERIC = frozenset(b"0123456789+-.eE ")


def _number(part: bytes, tag: int) -> float:
    if _NUMERIC.issuperset(part):
        with suppress(ValueError):
            return float(part)
    raise ImageError(f"{describe_tag(tag)} is not a decimal number; correct or leave out this object")


def _single(values: tuple[Number, ...], tag: int) -> Number | None:
    if len(values) > 1:
        raise ImageError(f"{describe_tag(tag)} holds {len(values)} values, 1 is expected")
    return values[0] if values else None


def describe_tag(tag: int) -> str:
    """Return the name of a tag for messages, such as 'RescaleSlope (0028,1053)'."""
    from pydicom.datadict import keyword_for_tag

    word = keyword_for_tag(tag)
    digits = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    return f"{word} {digits}" if word else digits
