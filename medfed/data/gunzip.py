"""The bytes of a .gz file, checked by their CRC and never more than were announced."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from medfed.errors import ImageError

_CHUNK = 1 << 20


def head(packed: bytes, length: int) -> bytes:
    """Return the first bytes of a gzip file, fewer if it holds fewer.

    Raises:
        ImageError: if they are damaged.
    """
    rest, found = packed[: max(1 << 16, 4 * length)], b""
    try:
        while rest and len(found) < length:  # a file may have several members, the first a few bytes long
            member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            found += member.decompress(rest, length - len(found))
            rest = member.unused_data
        return found
    except zlib.error:
        if found:
            return found
    raise ImageError("the .gz file is damaged at its beginning; copy it again")


def gunzip(packed: bytes, length: int) -> bytes | bytearray:
    """Return exactly `length` bytes of a gzip file, CRC checked.

    libdeflate (package deflate) is three times as fast as zlib, isal twice; either serves where it is
    installed.

    Raises:
        ImageError: if the file is damaged, truncated, or holds more or fewer bytes.
    """
    if int.from_bytes(packed[-4:], "little") == length & 0xFFFFFFFF:
        fast = _libdeflate()
        if fast is not None:
            data = fast(packed)
            if data is not None and len(data) == length:
                return data
    return _stream(packed, length)


def _libdeflate() -> Callable[[bytes], bytes | bytearray | None] | None:
    try:
        import deflate
    except ImportError:
        return None

    def unpack(packed: bytes) -> bytes | bytearray | None:
        # libdeflate knows one member only; a file of several, or a damaged one, goes the slow way, which says
        # why.
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


def _stream(packed: bytes, length: int) -> bytes:
    """Return the bytes of all members, unpacked piece by piece and never beyond `length`."""
    inflater = _inflater()
    parts: list[bytes] = []
    got = 0
    rest: bytes = packed
    trouble = ""
    try:
        while rest:
            member = inflater.decompressobj(zlib.MAX_WBITS | 16)
            piece = member.decompress(rest, length - got + 1)
            got += len(piece)
            parts.append(piece)
            if got > length:
                trouble = f"unpacks to more than the {length} bytes that the header announces"
                break
            if not member.eof:
                more = member.decompress(member.unconsumed_tail, 1) if member.unconsumed_tail else b""
                if more or not member.eof:
                    trouble = f"is truncated: {got} of {length} bytes"
                    break
            rest = member.unused_data
            if not rest.strip(b"\0"):
                break  # some writers fill the last block with zeros
    except (zlib.error, inflater.error):
        trouble = "is damaged: it does not unpack, or its CRC does not fit"
    if not trouble and got < length:
        trouble = f"holds {got} bytes, the header announces {length}"
    if trouble:
        raise ImageError(f"the .gz file {trouble}; copy it again")
    return b"".join(parts)
