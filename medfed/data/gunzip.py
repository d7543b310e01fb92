"""Decompression of .gz files: checked by CRC, and never more bytes than announced."""

from __future__ import annotations

import gzip
import io
import zlib
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
    # A file of several members announces another length at its end, and libdeflate reads one member only.
    if int.from_bytes(packed[-4:], "little") == length & 0xFFFFFFFF:
        data = _libdeflate(packed)
        if data is not None and len(data) == length:
            return data
    return _unpack_members(packed, length)


def _libdeflate(packed: bytes) -> bytes | bytearray | None:
    """Return the content of a gzip of one member; None without libdeflate, or if it refuses the file."""
    try:
        import deflate

        return deflate.gzip_decompress(packed)
    except ImportError:
        return None
    except deflate.DeflateError:  # damaged, or several members: the slower reader finds out
        return None


def _unpack_members(packed: bytes, length: int) -> bytes:
    """Return the content of all members, unpacked to at most one byte more than `length`."""
    open_gzip, gzip_error = _gzip_reader()
    try:
        with open_gzip(fileobj=io.BytesIO(packed), mode="rb") as file:
            data = file.read(length + 1)
    except EOFError:
        problem = f"is truncated: its {length} bytes end early"
    except (gzip.BadGzipFile, zlib.error, gzip_error):
        problem = "is damaged: it does not unpack, or its CRC does not fit"
    else:
        if len(data) == length:
            return data
        problem = (
            f"unpacks to more than the {length} bytes that the header announces"
            if len(data) > length
            else f"contains {len(data)} bytes, the header announces {length}"
        )
    raise ImageError(f"the .gz file {problem}; copy it again")


def _gzip_reader() -> tuple[type[gzip.GzipFile], Any]:
    """Return the reader of gzip files, and the error that it has besides zlib's."""
    try:
        from isal import igzip, igzip_lib
    except ImportError:
        return gzip.GzipFile, zlib.error
    return igzip.IGzipFile, igzip_lib.IsalError
