"""Volumes from MetaImage files: .mha, and .mhd with its .raw or .zraw, recognised by content.

The frame is ITK's, from which nearly all such files come: TransformMatrix holds the direction of each image
axis in LPS, one after the other, Offset the centre of the first voxel. It becomes RAS here.
AnatomicalOrientation only repeats that in letters and is not used, as in ITK. A file of two axes (a
radiograph) lies in one plane. The tests compare voxels and affines with SimpleITK's.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.raw_voxels import (
    MAX_HEADER_BYTES,
    Packing,
    RawBlock,
    beside,
    float_volume,
    patient_affine,
    read_block,
)
from medfed.data.read_options import ReadOptions
from medfed.data.refusals import GeometryError
from medfed.data.volume import Info, Volume
from medfed.errors import ImageError

_WHAT = "a MetaImage file"
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# Names that several versions of the format give to one key.
_ALIASES = {
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "Origin": "Offset",
    "Position": "Offset",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
_FIRST_KEY = re.compile(rb"\s*[A-Za-z]\w* *=")
_LPS_TO_RAS = np.array([[-1.0], [-1.0], [1.0]])

_Fields = dict[str, str]


def is_metaimage(start: bytes) -> bool:
    """Whether a file is a MetaImage, by its first bytes."""
    return _FIRST_KEY.match(start) is not None and b"NDims" in start[:4096] and b"DimSize" in start[:4096]


def read_metaimage(path: str, options: ReadOptions) -> Volume:
    """Return the volume of one MetaImage file; the values are those stored, including NaN.

    Raises:
        ImageError: if the header is contradictory or leaves the orientation, spacing or byte order open, or
            the voxels are damaged, truncated, or in a file that is not beside the header.
    """
    fields, end = _parse(path)
    sizes = _integers(fields, "DimSize")
    axes = _integer(fields, "NDims")
    if not 2 <= axes <= 4 or len(sizes) != axes or min(sizes, default=0) < 1:
        raise ImageError(f"{_WHAT} of {axes} axes and {len(sizes)} sizes; 2 to 4 axes of at least 1 are read")
    channels = _integer(fields, "ElementNumberOfChannels", 1)
    if channels < 1 or (channels > 1 and axes == 4 and sizes[3] > 1):
        raise ImageError(f"{_WHAT} with several channels and a fourth axis; split it")
    _check_meaning(fields)
    affine = _affine(fields, axes)
    stored = read_block(_block(path, fields, end, (channels, *sizes)), options)
    x, y, z, times = (*sizes, 1, 1)[:4]
    # numpy's order: (T, Z, Y, X, C); either T or C is 1.
    array, nan = float_volume(stored.reshape(times, z, y, x, channels))
    moved = array.transpose(0, 4, 3, 2, 1).reshape(times * channels, x, y, z)
    flags = (("projection", "single_slice") if axes == 2 else ()) + (("nan",) if nan else ())
    return Volume(moved, affine, Info("", (), flags))


def metaimage_voxels(path: str) -> str | None:
    """Return the file beside a MetaImage header that holds its voxels; None if they follow the header.

    Raises:
        ImageError: if the header is damaged, or that file is not beside it.
    """
    name = _parse(path)[0]["ElementDataFile"]
    return None if name.upper() == "LOCAL" else beside(path, name, _WHAT)


def _parse(path: str) -> tuple[_Fields, int]:
    """Return the header's fields, and how many bytes it has."""
    with open(path, "rb", buffering=0) as file:
        start = file.read(MAX_HEADER_BYTES)
    fields: _Fields = {}
    at = 0
    while "ElementDataFile" not in fields:
        line, newline, _ = start[at : at + 65536].partition(b"\n")
        key, equals, value = line.decode("latin-1").partition("=")
        name = _ALIASES.get(key.strip(), key.strip())
        at += len(line) + len(newline)
        if equals and name in fields:
            raise ImageError(f"{_WHAT} gives {name} twice; correct the header")
        if equals:
            fields[name] = value.strip()
        if not newline and "ElementDataFile" not in fields:
            raise ImageError(
                f"{_WHAT} without ElementDataFile: its header is cut off or damaged; copy it again"
            )
    return fields, at


def _check_meaning(fields: _Fields) -> None:
    if fields.get("ObjectType", "Image") != "Image":
        raise ImageError(f"{_WHAT} that holds no image (its ObjectType is another)")
    slope, shift = (
        fields.get("ElementToIntensityFunctionSlope", "1"),
        fields.get("ElementToIntensityFunctionOffset", "0"),
    )
    if _number(slope, "ElementToIntensityFunctionSlope") != 1 or _number(shift, "its Offset") != 0:
        raise ImageError(
            f"{_WHAT} with an ElementToIntensityFunction, which programs read differently; store the real"
            " values"
        )
    if fields.get("DistanceUnits", "mm") not in ("mm", "?", ""):
        raise ImageError(f"{_WHAT} whose DistanceUnits are not mm; convert it")


def _block(path: str, fields: _Fields, end: int, shape: tuple[int, ...]) -> RawBlock:
    name = fields["ElementDataFile"]
    if name.upper() == "LIST" or (len(name.split()) > 1 and "%" in name):
        raise ImageError(f"{_WHAT} whose voxels are in several files; convert it to one .mha")
    local = name.upper() == "LOCAL"
    skip = _integer(fields, "HeaderSize", 0)
    if skip < -1:
        raise ImageError(f"{_WHAT} with a HeaderSize below -1; correct the header")
    packing = _packing(fields)
    if packing != "raw" and skip:
        raise ImageError(f"{_WHAT} with a HeaderSize and compressed voxels; convert it")
    offset = None if skip == -1 else skip + (end if local else 0)
    voxels = path if local else beside(path, name, _WHAT)
    block = RawBlock(voxels, shape, _dtype(fields, packing), offset, packing, _WHAT)
    announced = _integer(fields, "CompressedDataSize", 0)
    present = os.stat(voxels).st_size - (offset or 0)
    if packing == "zlib" and announced and announced != present:
        state = "truncated" if present < announced else "damaged"
        raise ImageError(
            f"{_WHAT} is {state}: {present} compressed bytes, but its header announces {announced}; copy it"
            " again"
        )
    return block


def _packing(fields: _Fields) -> Packing:
    binary = _truth(fields, "BinaryData", None)
    compressed = _truth(fields, "CompressedData", False)
    if binary is None:
        raise ImageError(f"{_WHAT} without BinaryData; add 'BinaryData = True' to its header if it is binary")
    if not binary and compressed:
        raise ImageError(f"{_WHAT} of compressed text; convert it")
    return "zlib" if compressed else "raw" if binary else "text"


def _dtype(fields: _Fields, packing: Packing) -> np.dtype[Any]:
    kind = fields.get("ElementType", "").removesuffix("_ARRAY")
    if kind in ("MET_LONG", "MET_ULONG"):
        raise ImageError(f"{_WHAT} of type MET_LONG, which has 4 or 8 bytes; convert it to MET_INT")
    if kind not in _TYPES:
        raise ImageError(f"{_WHAT} whose ElementType is not one of {', '.join(_TYPES)}; convert it")
    dtype = np.dtype(_TYPES[kind])
    if dtype.itemsize == 1 or packing == "text":
        return dtype
    big_endian = _truth(fields, "BinaryDataByteOrderMSB", None)
    if big_endian is None:
        raise ImageError(
            f"{_WHAT} without BinaryDataByteOrderMSB, so its byte order is unknown; add"
            " 'BinaryDataByteOrderMSB = False' to its header if a PC wrote it"
        )
    return dtype.newbyteorder(">" if big_endian else "<")


def _affine(fields: _Fields, axes: int) -> NDArray[np.float64]:
    """Return the affine in RAS; a fourth axis (time, contrast) has no place in it."""
    matrix = _numbers(fields, "TransformMatrix", axes * axes)
    if matrix is None:
        raise GeometryError(
            f"{_WHAT} without TransformMatrix, so left and right are unknown; convert the image again from"
            " its DICOM, or add 'TransformMatrix = 1 0 0 0 1 0 0 0 1' if its axes run to left, back and head"
        )
    spacing = _numbers(fields, "ElementSpacing", axes) or _numbers(fields, "ElementSize", axes)
    if spacing is None or min(spacing) <= 0:
        raise GeometryError(f"{_WHAT} without an ElementSpacing above 0; correct the header")
    offset = _numbers(fields, "Offset", axes) or [0.0] * axes
    full = np.eye(4)
    # One row of the file is the direction of one image axis, so it is a column of the matrix.
    full[:axes, :axes] = np.reshape(matrix, (axes, axes)).T
    if axes == 4 and (np.abs(full[3, :3]).max() > 0 or np.abs(full[:3, 3]).max() > 0):
        raise GeometryError(f"{_WHAT} whose fourth axis is turned into space; split it")
    _check_direction(full[:3, :3])
    centre = _numbers(fields, "CenterOfRotation", axes) or [0.0] * axes
    if any(centre) and not np.array_equal(full, np.eye(4)):
        raise GeometryError(
            f"{_WHAT} turned about a CenterOfRotation, which programs read differently; convert it"
        )
    steps = full[:3, :3] * np.array([*spacing[:3], 1.0][:3])
    position = np.array([*offset[:3], 0.0][:3])
    return patient_affine(steps * _LPS_TO_RAS, position * _LPS_TO_RAS[:, 0], _WHAT)


def _check_direction(direction: NDArray[np.float64]) -> None:
    lengths = np.linalg.norm(direction, axis=0)
    # ITK takes the directions as they are: longer or shorter ones would scale the spacing unseen.
    if not np.isfinite(direction).all() or np.abs(lengths - 1).max() > 1e-3:
        raise GeometryError(f"{_WHAT} whose TransformMatrix holds no unit vectors; correct the header")


def _truth(fields: _Fields, key: str, default: bool | None) -> bool | None:
    if key not in fields:
        return default
    word = fields[key].lower()
    if word not in ("true", "false", "1", "0", "t", "f"):
        raise ImageError(f"{_WHAT} whose {key} is neither True nor False; correct the header")
    return word in ("true", "1", "t")


def _integer(fields: _Fields, key: str, default: int | None = None) -> int:
    if key not in fields and default is not None:
        return default
    values = _integers(fields, key)
    if len(values) != 1:
        raise ImageError(f"{_WHAT} whose {key} is not one integer; correct the header")
    return values[0]


def _integers(fields: _Fields, key: str) -> list[int]:
    if key not in fields:
        raise ImageError(f"{_WHAT} without {key}; its header is damaged")
    try:
        return [int(word) for word in fields[key].split()]
    except ValueError:
        raise ImageError(f"{_WHAT} whose {key} holds a word that is no integer; correct the header") from None


def _numbers(fields: _Fields, key: str, count: int) -> list[float] | None:
    if key not in fields:
        return None
    values = [_number(word, key) for word in fields[key].split()]
    if len(values) != count:
        raise GeometryError(
            f"{_WHAT} whose {key} holds {len(values)} numbers, expected {count}; correct the header"
        )
    return values


def _number(word: str, key: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise GeometryError(
            f"{_WHAT} whose {key} holds a word that is no number; correct the header"
        ) from None
