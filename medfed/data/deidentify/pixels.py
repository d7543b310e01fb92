"""De-identified pixel data: the pixels alone, without text or overlays hidden beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ImplicitVRLittleEndian


def copy_pixels(old: Any, clean: Any) -> None:
    """Copy the pixels, without spare bits, bytes after the end, and comments of the codestream."""
    if "PixelData" not in old:
        return
    element = old["PixelData"]
    if old.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian).is_encapsulated:
        clean.add_new("PixelData", "OB", _without_comments(element.value, old))
        clean["PixelData"].is_undefined_length = True
    else:
        vr = "OW" if int(old.BitsAllocated) > 8 else element.VR
        clean.add_new("PixelData", vr, _without_spare_bits(element.value, old))


def _without_spare_bits(data: bytes, old: Any) -> bytes:
    allocated, stored = int(old.BitsAllocated), int(old.BitsStored)
    high = int(old.get("HighBit", stored - 1))
    bits = allocated * int(old.Rows) * int(old.Columns) * int(old.get("NumberOfFrames", 1) or 1)
    length = -(-bits // 8)
    data = data[:length]
    if allocated in (8, 16, 32) and stored < allocated and len(data) == length:
        # Overlays were once stored in the unused bits of each pixel.
        order = "<" if old.original_encoding[1] is not False else ">"
        words = np.frombuffer(data, f"{order}u{allocated // 8}")
        mask = ((1 << stored) - 1) << (high - stored + 1)
        data = (words & words.dtype.type(mask)).tobytes()
    return data + b"\0" * (len(data) % 2)


def _without_comments(data: bytes, old: Any) -> bytes:
    """Return encapsulated frames without JPEG comments and application segments, which can hold any text."""
    frames = int(old.get("NumberOfFrames", 1) or 1)
    table = old.get("ExtendedOffsetTable"), old.get("ExtendedOffsetTableLengths")
    offsets = None if None in table else table
    coded = generate_frames(data, number_of_frames=frames, extended_offsets=offsets)
    stripped = [strip_comments(frame) for frame in coded]
    return encapsulate(stripped, has_bot=len(stripped) > 1)


# Application segments that a decoder needs: JFIF and Adobe give the colour model, APP8 is JPEG-LS's.
_NEEDED_APPS = (0xE0, 0xE8, 0xEE)


def strip_comments(frame: bytes) -> bytes:
    """Return one JPEG, JPEG-LS or JPEG 2000 codestream without comments; other data unchanged."""
    if frame[:2] == b"\xff\xd8":
        return _strip_segments(frame, 0xDA, _is_jpeg_comment)
    if frame[:4] == b"\xff\x4f\xff\x51":
        return _strip_segments(frame, 0x90, lambda marker: marker == 0x64)
    return frame


def _is_jpeg_comment(marker: int) -> bool:
    return marker == 0xFE or (0xE0 <= marker <= 0xEF and marker not in _NEEDED_APPS)


def _strip_segments(frame: bytes, last: int, removable: Callable[[int], bool]) -> bytes:
    parts, at = [frame[:2]], 2
    while at + 4 <= len(frame) and frame[at] == 0xFF and frame[at + 1] != last:
        end = at + 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
        if not removable(frame[at + 1]):
            parts.append(frame[at:end])
        at = end
    # Bytes after the end of the image could hold anything, too.
    stop = frame.rfind(b"\xff\xd9")
    tail = frame[at : stop + 2] if stop > at else frame[at:]
    parts.append(tail + b"\0" * ((sum(map(len, parts)) + len(tail)) % 2))
    return b"".join(parts)
