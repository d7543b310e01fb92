"""A block of voxels that a text header describes, raw or compressed, in the header's file or beside it.

MetaImage and NRRD share it. A block has exactly as many bytes as its header announces, or is refused: a
longer one would be read at a wrong place. No more bytes are unpacked than announced, and checksums are
checked.
"""

from __future__ import annotations

import bz2
import math
import os
import stat
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medfed.data.gunzip import gunzip
from medfed.data.read_options import ReadOptions
from medfed.data.refusals import GeometryError
from medfed.data.size_limits import check_size
from medfed.errors import ImageError

Packing = Literal["raw", "zlib", "gzip", "bzip2", "text"]

# No header of these formats is longer: a seg.nrrd of a hundred structures has 60 kB.
MAX_HEADER_BYTES = 1 << 20
# A number in text with its blank is shorter than this.
_MAX_NUMBER_CHARACTERS = 32


@dataclass(frozen=True, slots=True, repr=False)
class RawBlock:
    """Where the voxels are and how they are stored.

    Attributes:
        path: the file.
        shape: numbers of values along the axes, the fastest first.
        dtype: with its byte order.
        offset: bytes before the block; None if the block is the end of the file, however much precedes it.
        packing: how it is compressed, or `text` for numbers in ASCII.
        what: name of the format for messages, such as 'an NRRD file'.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None
    packing: Packing
    what: str

    @property
    def data_bytes(self) -> int:
        """Its bytes when unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_block(block: RawBlock, options: ReadOptions) -> NDArray[Any]:
    """Return the stored values, with the axes in numpy's order: the slowest first.

    Raises:
        ImageError: if the file is too large, truncated, longer than announced, or damaged.
    """
    size, voxels = os.stat(block.path).st_size, math.prod(block.shape)
    limited = block.packing in ("zlib", "gzip", "bzip2") and voxels > options.unlimited_ratio_voxels
    packed = size if limited else None
    check_size(block.data_bytes, packed, voxels, block.what, options.max_bytes)
    stored = _text_values(block, size) if block.packing == "text" else _binary_values(block, size)
    return stored.reshape(block.shape[::-1])


def _binary_values(block: RawBlock, size: int) -> NDArray[Any]:
    offset = size - block.data_bytes if block.offset is None else block.offset
    if block.packing == "raw" and (offset < 0 or size != offset + block.data_bytes):
        state = "truncated" if offset < 0 or size < offset + block.data_bytes else "damaged"
        raise ImageError(
            f"{block.what} is {state}: {size} bytes, but its header announces"
            f" {max(offset, 0) + block.data_bytes}; copy it again"
        )
    # The packed form of noise is a little longer than the noise itself.
    if block.packing != "raw" and size - offset > 2 * block.data_bytes + (1 << 20):
        raise ImageError(f"{block.what} has far more bytes than its header announces; it is damaged")
    with open(block.path, "rb", buffering=0) as file:
        file.seek(offset)
        data = file.readall()
    return np.frombuffer(_unpacked(data, block), block.dtype)


def _unpacked(data: bytes, block: RawBlock) -> bytes | bytearray:
    if block.packing == "raw":
        return data
    if block.packing == "gzip":
        return gunzip(data, block.data_bytes)
    try:
        return _inflated(data, block.data_bytes, block.packing)
    except (zlib.error, OSError, EOFError):
        raise ImageError(f"{block.what} is damaged: its voxels do not unpack; copy it again") from None
    except _WrongLengthError as error:
        raise ImageError(f"{block.what} is {error}; copy it again") from None


class _WrongLengthError(Exception):
    """The data unpack to another number of bytes than announced."""


def _inflated(data: bytes, length: int, packing: Packing) -> bytes:
    """Return exactly `length` bytes of a zlib or bzip2 stream, which ends there, its checksum checked."""
    if packing == "bzip2":
        bzip2 = bz2.BZ2Decompressor()
        result = bzip2.decompress(data, length + 1)
        while not bzip2.eof and len(result) <= length and not bzip2.needs_input:
            result += bzip2.decompress(b"", length + 1 - len(result))
        ended, rest = bzip2.eof, bzip2.unused_data if bzip2.eof else b""
    else:
        inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        result = inflate.decompress(data, length + 1)
        # The checksum behind the last byte is only read by a further call.
        result += inflate.decompress(inflate.unconsumed_tail, 1) if len(result) <= length else b""
        ended, rest = inflate.eof, inflate.unused_data
    if len(result) > length or rest:
        raise _WrongLengthError("damaged: it holds more voxels than its header announces")
    if len(result) < length or not ended:
        raise _WrongLengthError("truncated: its compressed voxels end early")
    return result


def _text_values(block: RawBlock, size: int) -> NDArray[Any]:
    count, offset = math.prod(block.shape), block.offset or 0
    if size - offset > count * _MAX_NUMBER_CHARACTERS + MAX_HEADER_BYTES:
        raise ImageError(f"{block.what} has far more bytes than its header announces; it is damaged")
    with open(block.path, "rb", buffering=0) as file:
        file.seek(offset)
        words = file.readall().split()
    if len(words) != count:
        raise ImageError(
            f"{block.what} holds {len(words)} numbers in text, its header announces {count}; copy it again"
        )
    try:
        if block.dtype.kind == "f":
            return np.array([float(word) for word in words], block.dtype)
        return np.array([int(word) for word in words], block.dtype)  # numpy refuses what does not fit
    except (ValueError, OverflowError):
        raise ImageError(f"{block.what} holds a word that is no number of its type; it is damaged") from None


def beside(path: str, name: str, what: str) -> str:
    """Return the path of the voxels' file that a header names: a regular file in the header's own folder.

    Raises:
        ImageError: for any other place, so that a header cannot make this account read another file.
    """
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name or "%" in name:
        raise ImageError(
            f"{what} names a file of voxels outside its own folder, or a pattern of several files; put both"
            " into one folder, with one file of voxels, and correct the header"
        )
    voxels = os.path.join(os.path.dirname(path), name)
    try:
        regular = stat.S_ISREG(os.stat(voxels).st_mode)
    except OSError:
        regular = False
    if not regular:
        raise ImageError(f"{what} names a file of voxels that is not beside it; copy both files")
    return voxels


def float_volume(stored: NDArray[Any]) -> tuple[NDArray[np.float32], bool]:
    """Return values as float32 in memory of their own, and whether any is NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        array = stored.astype(np.float32)
        finite = stored.dtype.kind != "f" or math.isfinite(float(array.sum(dtype=np.float64)))
    if finite:
        return array, False
    if np.isinf(array).any():
        raise ImageError("a voxel is infinite, or beyond what float32 holds; correct the image")
    return array, bool(np.isnan(array).any())


def patient_affine(
    directions: NDArray[np.float64], origin: NDArray[np.float64], what: str
) -> NDArray[np.float64]:
    """Return an affine (4, 4) from the steps along X, Y, Z (columns, mm, RAS) and the first voxel's centre.

    Raises:
        GeometryError: if a number is not finite, two axes point the same way, or a voxel has no sound size.
    """
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions, origin
    if not np.isfinite(affine).all():
        raise GeometryError(f"{what} gives a position that is not a finite number; correct the header")
    lengths = np.linalg.norm(directions, axis=0)
    if lengths.min() < 1e-5 or lengths.max() > 1000:
        raise GeometryError(
            f"{what} has voxels of {lengths[0]:g} x {lengths[1]:g} x {lengths[2]:g} mm; correct the spacing"
        )
    if abs(np.linalg.det(directions / lengths)) < 1e-3:
        raise GeometryError(
            f"{what} is singular: two axes of the image point the same way; correct the header"
        )
    return affine
