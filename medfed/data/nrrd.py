"""Volumes from NRRD files: .nrrd, .nhdr with its file of voxels, and 3D Slicer's .seg.nrrd.

The file must say the patient's frame (`space`: LPS, RAS or LAS), the step of each spatial axis (`space
directions`, mm) and the centre of the first voxel (`space origin`); the affine becomes RAS. An axis without
a direction (time, contrast, colour, Slicer's layers) becomes the channels, wherever it stands. In a seg.nrrd
every segment has a name, a layer (a channel) and a value in it, which `Info.label_names` gives. The tests
compare voxels and affines with SimpleITK's and pynrrd's.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
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

_WHAT = "an NRRD file"
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        "longlong",
        "long long",
        "long long int",
        "signed long long",
        "signed long long int",
        "int64",
        "int64_t",
    ),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: code for code, names in _TYPES.items() for name in names}
_PACKINGS: dict[str, Packing] = {
    "raw": "raw",
    "gzip": "gzip",
    "gz": "gzip",
    "bzip2": "bzip2",
    "bz2": "bzip2",
    "ascii": "text",
    "text": "text",
    "txt": "text",
}
# The sign of each axis of a space in RAS.
_SPACES = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
_REFUSED_KINDS = ("complex", "quaternion", "matrix")
_VECTOR = re.compile(r"none|\([^()]*\)", re.IGNORECASE)
_SEGMENT = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer|ID)$")
# The format's spellings of one field.
_ALIASES = {"datafile": "data file", "byteskip": "byte skip", "lineskip": "line skip", "oldmin": "old min"}
_ALIASES |= {"oldmax": "old max"}

_Fields = dict[str, str]


@dataclass(frozen=True, slots=True)
class _Axes:
    """Which axes of the file run through space, and which one holds the channels."""

    sizes: tuple[int, ...]
    spatial: tuple[int, int, int]
    channels: int | None
    steps: NDArray[np.float64]  # (3, 3), a column per spatial axis, in the file's space


@dataclass(frozen=True, slots=True)
class _Segment:
    """One segment of a seg.nrrd: its name, and the value that it has in one layer."""

    number: int
    name: str
    layer: int
    value: int


def is_nrrd(start: bytes) -> bool:
    """Whether a file is NRRD, by its first bytes."""
    return start.startswith(b"NRRD000")


def read_nrrd(path: str, options: ReadOptions) -> Volume:
    """Return the volume of one NRRD file; the values are those stored, including NaN.

    With `options.as_label` the layers of a seg.nrrd are numbered together, so that no two segments share a
    number.

    Raises:
        ImageError: if the header leaves space, directions or byte order open, or the voxels are damaged,
            truncated, or in a file that is not beside the header.
    """
    fields, keys, end = _parse(path)
    axes = _axes(fields)
    _check_meaning(fields, axes)
    affine = _affine(fields, axes)
    stored = read_block(_block(path, fields, end, axes.sizes), options)
    moved = _channels_first(stored.transpose(), axes)
    names: dict[int, str] = {}
    segments = _segments(keys, moved.shape[0])
    if segments and options.as_label:
        moved, names = _numbered(moved, segments)
    array, nan = float_volume(moved)
    flags = (("cropped",) if segments else ()) + (("nan",) if nan else ())
    return Volume(array, affine, Info("", (), flags, label_names=names))


def nrrd_voxels(path: str) -> str | None:
    """Return the file beside an NRRD header that holds its voxels; None if they follow the header.

    Raises:
        ImageError: if the header is damaged, or that file is not beside it.
    """
    name = _parse(path)[0].get("data file")
    return None if name is None else beside(path, name, _WHAT)


def segment_names(path: str | os.PathLike[str]) -> tuple[tuple[int, str], ...]:
    """Return the number and name of each segment of a seg.nrrd, by its header alone; none for another file.

    Raises:
        ImageError: if its header is damaged.
    """
    if not os.path.isfile(path):
        return ()
    with open(path, "rb") as file:
        if not is_nrrd(file.read(8)):
            return ()
    fields, keys, _ = _parse(os.fspath(path))
    axes = _axes(fields)
    layers = 1 if axes.channels is None else axes.sizes[axes.channels]
    return tuple((number, name) for number, name in _numbers_of(_segments(keys, layers), layers).values())


# ------------------------------------------------------------------------------------------------- header


def _parse(path: str) -> tuple[_Fields, _Fields, int]:
    """Return the fields, the key/value pairs, and how many bytes the header has with its empty line."""
    with open(path, "rb", buffering=0) as file:
        start = file.read(MAX_HEADER_BYTES)
    fields: _Fields = {}
    keys: _Fields = {}
    at = start.find(b"\n") + 1
    if re.fullmatch(rb"NRRD000[1-5]\r?\n", start[:at]) is None:
        raise ImageError(f"{_WHAT} whose first line is not NRRD0001 to NRRD0005; it is damaged or too new")
    while at < len(start):
        line, newline, _ = start[at:].partition(b"\n") if at else (b"", b"", b"")
        at += len(line) + len(newline)
        line = line.rstrip()
        if not line:
            return fields, keys, at
        if not line.startswith(b"#"):
            _add(line.decode("utf-8", "replace"), fields, keys)
    if "data file" in fields and len(start) < MAX_HEADER_BYTES:  # a detached header may end without a line
        return fields, keys, at
    raise ImageError(f"{_WHAT} whose header does not end; it is cut off or damaged, copy it again")


def _add(line: str, fields: _Fields, keys: _Fields) -> None:
    """Add one line of a header: `field: value`, or `key:=value`."""
    match = re.match(r"(.*?)(:=|: ?)(.*)$", line)
    if match is None:
        raise ImageError(f"{_WHAT} with a header line that is neither a field nor a key; it is damaged")
    name, separator, value = match.groups()
    target = keys if separator == ":=" else fields
    if target is fields:
        name = _ALIASES.get(name.strip().lower(), name.strip().lower())
    if name in target:
        raise ImageError(f"{_WHAT} that gives one field or key twice; correct the header")
    target[name] = value.strip()


def _axes(fields: _Fields) -> _Axes:
    sizes = tuple(_integers(fields, "sizes"))
    if _integers(fields, "dimension") != [len(sizes)] or min(sizes, default=0) < 1 or len(sizes) > 7:
        raise ImageError(f"{_WHAT} of {len(sizes)} sizes, which do not match its dimension; it is damaged")
    directions = _VECTOR.findall(fields.get("space directions", ""))
    if not directions:
        raise GeometryError(
            f"{_WHAT} without 'space directions', so left and right are unknown; convert the image again from"
            " its DICOM"
        )
    if len(directions) != len(sizes):
        raise GeometryError(
            f"{_WHAT} with {len(directions)} space directions for {len(sizes)} axes; correct the header"
        )
    vectors = [_vector(word) for word in directions]
    spatial = [axis for axis, vector in enumerate(vectors) if vector is not None]
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    if len(spatial) != 3:
        raise GeometryError(f"{_WHAT} with {len(spatial)} axes in space; 3 are read, convert it")
    more = [axis for axis in others if sizes[axis] > 1]
    if len(more) > 1:
        raise ImageError(f"{_WHAT} with {len(more)} axes beyond space; only one is read, split it")
    steps = np.array([vectors[axis] for axis in spatial], np.float64).T
    first, second, third = spatial
    return _Axes(sizes, (first, second, third), more[0] if more else None, steps)


def _vector(word: str) -> list[float] | None:
    if word.lower() == "none":
        return None
    try:
        vector = [float(part) for part in word[1:-1].split(",")]
    except ValueError:
        raise GeometryError(f"{_WHAT} with a vector that holds no numbers; correct the header") from None
    if len(vector) != 3:
        raise GeometryError(f"{_WHAT} with a vector of {len(vector)} numbers; 3 are expected")
    # Some programs write (nan,nan,nan) for an axis without direction.
    return None if all(np.isnan(vector)) else vector


def _check_meaning(fields: _Fields, axes: _Axes) -> None:
    kinds = fields.get("kinds", "").lower().split()
    if kinds and len(kinds) != len(axes.sizes):
        raise ImageError(f"{_WHAT} with {len(kinds)} kinds for {len(axes.sizes)} axes; correct the header")
    if axes.channels is not None and kinds and any(word in kinds[axes.channels] for word in _REFUSED_KINDS):
        raise ImageError(f"{_WHAT} of complex numbers, quaternions or matrices; only scalars are read")
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit.lower() not in ("mm", "millimeter", "millimetre", "") for unit in units):
        raise GeometryError(f"{_WHAT} whose space units are not mm; convert it")
    if "old min" in fields or "old max" in fields:
        raise ImageError(f"{_WHAT} with quantised values (old min, old max); store the real values")


def _affine(fields: _Fields, axes: _Axes) -> NDArray[np.float64]:
    signs = _SPACES.get(fields.get("space", "").lower())
    if signs is None:
        raise GeometryError(
            f"{_WHAT} whose 'space' is not left-posterior-superior, right-anterior-superior or"
            " left-anterior-superior, so left and right are unknown; convert the image again from its DICOM"
        )
    origin = _vector(fields.get("space origin", "none").strip())
    if origin is None:
        raise GeometryError(f"{_WHAT} without 'space origin', so its place is unknown; correct the header")
    flip = np.array(signs, np.float64)
    return patient_affine(axes.steps * flip[:, None], np.array(origin) * flip, _WHAT)


def _block(path: str, fields: _Fields, end: int, sizes: tuple[int, ...]) -> RawBlock:
    packing = _PACKINGS.get(fields.get("encoding", "").lower())
    if packing is None:
        raise ImageError(f"{_WHAT} whose encoding is not raw, gzip, bzip2 or text; convert it")
    kind = fields.get("type", "").lower()
    if kind not in _DTYPES:
        raise ImageError(f"{_WHAT} whose type is not an integer of 8 to 64 bits, float or double; convert it")
    dtype = np.dtype(_DTYPES[kind])
    if dtype.itemsize > 1 and packing != "text":
        order = fields.get("endian", "").lower()
        if order not in ("little", "big"):
            raise ImageError(f"{_WHAT} without 'endian', so its byte order is unknown; correct the header")
        dtype = dtype.newbyteorder("<" if order == "little" else ">")
    skip, lines = _integers(fields, "byte skip", 0)[0], _integers(fields, "line skip", 0)[0]
    if lines or skip < -1 or (skip and packing != "raw"):
        raise ImageError(f"{_WHAT} with lines, or compressed bytes, to skip; convert it")
    name = fields.get("data file")
    voxels = path if name is None else beside(path, _one_file(name), _WHAT)
    offset = None if skip == -1 else skip + (end if name is None else 0)
    return RawBlock(voxels, sizes, dtype, offset, packing, _WHAT)


def _one_file(name: str) -> str:
    if name.upper().startswith("LIST") or "%" in name:
        raise ImageError(f"{_WHAT} whose voxels are in several files; convert it to one .nrrd")
    return name.removeprefix("./")


def _integers(fields: _Fields, name: str, default: int | None = None) -> list[int]:
    if name not in fields:
        if default is None:
            raise ImageError(f"{_WHAT} without '{name}'; its header is damaged")
        return [default]
    try:
        values = [int(word) for word in fields[name].split()]
    except ValueError:
        values = []
    if not values:
        raise ImageError(f"{_WHAT} whose '{name}' holds no integers; correct the header")
    return values


# -------------------------------------------------------------------------------------------------- voxels


def _channels_first(stored: NDArray[Any], axes: _Axes) -> NDArray[Any]:
    """Return stored values, with axes in the file's order, as (C, X, Y, Z)."""
    order = (*axes.spatial,) if axes.channels is None else (axes.channels, *axes.spatial)
    rest = tuple(axis for axis in range(stored.ndim) if axis not in order)
    moved = stored.transpose((*rest, *order))
    return moved.reshape((-1, *moved.shape[-3:])) if rest or axes.channels is None else moved


def _segments(keys: _Fields, layers: int) -> tuple[_Segment, ...]:
    """Return the segments that the header of a seg.nrrd lists, none for another file.

    Raises:
        ImageError: if a name, layer or value is missing or given twice.
    """
    found: dict[int, dict[str, str]] = {}
    for key, value in keys.items():
        match = _SEGMENT.match(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = value
    # Before 2020 Slicer wrote one channel per segment, without layers and values.
    one_each = not any({"Layer", "LabelValue"} & set(one) for one in found.values())
    segments = []
    for number, one in sorted(found.items()):
        layer = one.get("Layer", str(number) if one_each else "0")
        value = one.get("LabelValue", "1" if one_each else "")
        if "Name" not in one or not layer.isdecimal() or not value.isdecimal() or int(layer) >= layers:
            raise ImageError(
                f"{_WHAT} with a segment without Name, Layer or LabelValue; store it again in Slicer"
            )
        segments.append(_Segment(number, _unescaped(one["Name"]), int(layer), int(value)))
    places = [(one.layer, one.value) for one in segments]
    if len(set(places)) < len(places) or any(one.value == 0 for one in segments):
        raise ImageError(
            f"{_WHAT} in which two segments share a value, or one is 0; store it again in Slicer"
        )
    return tuple(segments)


def _unescaped(text: str) -> str:
    return text.replace("\\n", " ").replace("\\\\", "\\").strip()


def _numbered(stored: NDArray[Any], segments: tuple[_Segment, ...]) -> tuple[NDArray[Any], dict[int, str]]:
    """Return layers in which every segment has a number of its own, and its name by that number.

    Raises:
        ImageError: if a layer holds a value that no segment has.
    """
    numbers = _numbers_of(segments, stored.shape[0])
    result = np.zeros(stored.shape, np.int32)
    known = np.zeros(stored.shape, bool)
    for (layer, value), (number, _) in numbers.items():
        here = stored[layer] == value
        result[layer][here] = number
        known[layer] |= here
    if np.any(~known & (stored != 0)):
        raise ImageError(f"{_WHAT} whose voxels hold a value that no segment has; store it again in Slicer")
    return result, dict(numbers.values())


def _numbers_of(segments: tuple[_Segment, ...], layers: int) -> dict[tuple[int, int], tuple[int, str]]:
    """Return by layer and value the number and name of each segment; in one layer the value is the number."""
    return {
        (one.layer, one.value): (one.value if layers == 1 else index, one.name)
        for index, one in enumerate(segments, start=1)
    }
