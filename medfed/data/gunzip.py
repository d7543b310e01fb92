"""Decompression of .gz files: checked by CRC, and never more bytes than announced."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from medfed.errors import ImageError


def gunzip_head(packed: bytes, length: int) -> bytes:
    """Return the first bytes of a gzip file, or fewer if it contains fewer.

    Raises:
        ImageError: if they are damaged.
    """
    rest, start = packed[: max(1 << 16, 4 * length)], b""
    try:
        while rest and len(start) < length:  # a file may have several members, the first a few bytes long
            member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            start += member.decompress(rest, length - len(start))
            rest = member.unused_data
        return start
    except zlib.error:
        if start:
            return start
    raise ImageError("the .gz file is damaged at its beginning; copy it again")


def gunzip(packed: bytes, length: int) -> bytes | bytearray:
    """Return the content of a gzip file, which must have `length` bytes, after checking its CRC.

    libdeflate (package deflate) is three times as fast as zlib and isal twice; either is used if installed.

    Raises:
        ImageError: if the file is damaged, truncated, or contains more or fewer bytes.
    """
    if int.from_bytes(packed[-4:], "little") == length & 0xFFFFFFFF:
        fast = _libdeflate()
        if fast is not None:
            data = fast(packed)
            if data is not None and len(data) == length:
                return data
    return _gunzip_members(packed, length)


def _libdeflate() -> Callable[[bytes], bytes | bytearray | None] | None:
    try:
        import deflate
    except ImportError:
        return None

    def unpack(packed: bytes) -> bytes | bytearray | None:
        # libdeflate supports one member only; a file of several, or a damaged one, takes the slow path, which
        # gives the reason.
        try:
            return deflate.gzip_decompress(packed)
        except deflate.DeflateError:
            return None

    return unpack


def _inflater() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


def _gunzip_members(packed: bytes, length: int) -> bytes:
    """Return the bytes of all members, decompressed one by one and never beyond `length`."""
    inflater = _inflater()
    parts: list[bytes] = []
    size = 0
    rest: bytes = packed
    problem = ""
    try:
        while rest:
            member = inflater.decompressobj(zlib.MAX_WBITS | 16)
            piece = member.decompress(rest, length - size + 1)
            size += len(piece)
            parts.append(piece)
            if size > length:
                problem = f"unpacks to more than the {length} bytes that the header announces"
                break
            if not member.eof:
                more = member.decompress(member.unconsumed_tail, 1) if member.unconsumed_tail else b""
                if more or not member.eof:
                    problem = f"is truncated: {size} of {length} bytes"
                    break
            rest = member.unused_data
            if not rest.strip(b"\0"):
                break  # some writers fill the last block with zeros
    except (zlib.error, inflater.error):
        problem = "is damaged: it does not unpack, or its CRC does not fit"
    if not problem and size < length:
        problem = f"contains {size} bytes, the header announces {length}"
    if problem:
        raise ImageError(f"the .gz file {problem}; copy it again")
    return b"".join(parts)
