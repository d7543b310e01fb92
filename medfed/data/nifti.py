"""Volumes from NIfTI-1 and NIfTI-2 files, .nii and .nii.gz, recognised by content.

nibabel gives only the table of a header's fields: its own reader repairs damage and logs header values. The
tests check that both give the same voxels and affines. A fourth axis (time, contrast) or a fifth (ITK's
vectors) becomes the channels.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medfed.data.gunzip import gunzip, gunzip_head
from medfed.data.read_options import ReadOptions
from medfed.data.refusals import GeometryError
from medfed.data.size_limits import check_size
from medfed.data.volume import Info, Volume
from medfed.errors import ImageError

_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_REFUSED = {1: "single bits", 32: "complex numbers", 128: "RGB colours", 1536: "128 bit floats"}
_REFUSED |= {1792: "complex numbers", 2048: "complex numbers", 2304: "RGBA colours"}
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
# NIfTI-1 stores the quaternion as float32: its squares may sum to slightly more than 1.
_UNIT_SLACK = 1e-5
# nibabel treats a quaternion's first component as 0 within this; with float32 it is noise, not a rotation.
_HALF_TURN = 3 * float(np.finfo(np.float32).eps)
# Two affines of one file that place a corner further apart than this fraction of a voxel differ by more than
# rounding: float32 quaternions near a half turn are off by up to 0.2 voxels in real files.
_DIFFER_VOXELS, _REFUSE_VOXELS = 0.25, 0.5

# The fields of a NIfTI-1 or NIfTI-2 header by nifti1.h's names, unchecked: numbers, or lists of them.
_Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Header:
    shape: tuple[int, int, int, int]  # X, Y, Z, channels
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    affine_ras: NDArray[np.float64]
    flags: tuple[str, ...]

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def is_nifti(start: bytes) -> bool:
    """Whether a file is NIfTI, by its first 352 bytes, decompressed."""
    return start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2")


def unpacked_head(start: bytes) -> bytes:
    """Return the first bytes of a file, decompressed if it is a gzip and not damaged."""
    if start[:2] != b"\x1f\x8b":
        return start
    try:
        return gunzip_head(start, 544)
    except ImageError:
        return start


def read_nifti(path: str, options: ReadOptions) -> Volume:
    """Return the volume of one NIfTI file; float values are those of the file, including NaN.

    Raises:
        ImageError: if the file is damaged, has colours or complex numbers, or gives no orientation.
    """
    size = os.stat(path).st_size
    with open(path, "rb", buffering=0) as file:
        start = file.read(1 << 12)
        packed = start[:2] == b"\x1f\x8b"
        header = _parse_header(gunzip_head(start, 544) if packed else start)
        voxels = math.prod(header.shape)
        # A label is nearly empty and may expand a thousand times; it is no larger than its image.
        limited = packed and voxels > options.unlimited_ratio_voxels
        check_size(header.data_bytes, size if limited else None, voxels, "a NIfTI file", options.max_bytes)
        total = header.offset + header.data_bytes
        _check_file_size(size, total, packed)
        file.seek(0)
        data = gunzip(file.readall(), total) if packed else file.readall()
    stored = np.frombuffer(data, header.dtype, voxels, header.offset)
    array, nan = _scaled_values(stored.reshape(header.shape[::-1]), header)
    flags = header.flags + (("nan",) if nan else ())
    return Volume(array.transpose(0, 3, 2, 1), header.affine_ras, Info("", (), flags))


def _check_file_size(size: int, announced: int, packed: bool) -> None:
    if packed and size > 2 * announced + (1 << 20):
        raise ImageError(
            f"the .gz file has {size} bytes, but its header announces {announced} unpacked; it is damaged"
        )
    if not packed and size != announced:
        state = "truncated" if size < announced else "damaged"
        raise ImageError(
            f"a {state} NIfTI file: {size} bytes, but its header announces {announced}; copy it again"
        )


def _scaled_values(stored: NDArray[Any], header: _Header) -> tuple[NDArray[np.float32], bool]:
    """Return the scaled values as float32, and whether any is NaN."""
    if (header.slope, header.inter) == (1.0, 0.0):
        with np.errstate(over="ignore", invalid="ignore"):
            array = stored.astype(np.float32)
    else:
        # Plane by plane, because the products are float64: those of a whole body would take 4 GB.
        array = np.empty(stored.shape, np.float32)
        planes, values = array.reshape(-1, *array.shape[2:]), stored.reshape(-1, *stored.shape[2:])
        with np.errstate(over="ignore", invalid="ignore"):
            for i, value in enumerate(values):
                planes[i] = value.astype(np.float64) * header.slope + header.inter
    if stored.dtype.kind != "f" and header.slope == 1.0:
        return array, False
    # One sum shows whether every value is finite; only a file with other values is examined further.
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(array.sum(dtype=np.float64))
    if math.isfinite(total):
        return array, False
    if np.isinf(array).any():
        raise ImageError(
            "voxels are infinite, or too large for a 32 bit float; correct the values or scl_slope"
        )
    return array, bool(np.isnan(array).any())


def _parse_header(data: bytes) -> _Header:
    from nibabel import nifti1, nifti2

    if len(data) < 348:
        raise ImageError(f"a NIfTI header of {len(data)} bytes is cut off; copy the file again")
    byte_orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in byte_orders:
        size = struct.unpack_from(order + "i", data)[0]
        if size == 348:
            _check_magic(data[344:348], b"n+1\0")
            return _check_header(_fields(data, nifti1.header_dtype.newbyteorder(order)), order, 352)
        if size == 540:
            if len(data) < 540:
                raise ImageError(f"a NIfTI-2 header of {len(data)} bytes is cut off; copy the file again")
            _check_magic(data[4:12], b"n+2\0\r\n\x1a\n")
            return _check_header(_fields(data, nifti2.header_dtype.newbyteorder(order)), order, 544)
    raise ImageError("the NIfTI header's size is neither 348 nor 540; the file is damaged")


def _fields(data: bytes, layout: np.dtype[Any]) -> _Fields:
    """Return the fields of a header, unchecked, as Python's own numbers."""
    record = np.frombuffer(data, layout, 1)[0]
    return {name: record[name].tolist() for name in record.dtype.names or ()}


def _check_magic(magic: bytes, expected: bytes) -> None:
    if magic == expected:
        return
    if magic[:2] == b"ni":
        raise ImageError(
            "a NIfTI header whose voxels are in another file (.img); convert the pair to one .nii"
        )
    raise ImageError(
        "not NIfTI, or its magic number is damaged (Analyze files give no orientation); convert it to .nii"
    )


def _check_header(fields: _Fields, byte_order: str, min_offset: int) -> _Header:
    shape = _shape(fields["dim"])
    datatype, bits, offset = fields["datatype"], fields["bitpix"], fields["vox_offset"]
    if datatype not in _TYPES:
        what = _REFUSED.get(datatype, f"data type {datatype}")
        raise ImageError(f"a NIfTI file of {what}; only integers and real numbers are read, convert it")
    dtype = np.dtype(byte_order + _TYPES[datatype])
    if bits != dtype.itemsize * 8:
        raise ImageError(
            f"data type {datatype} takes {dtype.itemsize * 8} bits, bitpix is {bits}; the header is damaged"
        )
    if not (math.isfinite(offset) and offset == int(offset) and min_offset <= offset < 1 << 40):
        raise ImageError(f"vox_offset is not an integer from {min_offset}; the header is damaged")
    slope, inter = _scaling(fields["scl_slope"], fields["scl_inter"])
    affine, flags = _affine(fields, shape)
    return _Header(shape, dtype, int(offset), slope, inter, affine, flags)


def _shape(dim: list[int]) -> tuple[int, int, int, int]:
    axes = dim[0]
    if not 1 <= axes <= 7:
        raise ImageError(f"{axes} axes; 1 to 7 are possible, the header is damaged")
    sizes = [*dim[1 : axes + 1], 1, 1, 1, 1, 1, 1][:7]
    if min(sizes) < 1:
        raise ImageError(f"an axis of {min(sizes)} voxels; the header is damaged")
    more = [size for size in sizes[3:] if size > 1]
    if len(more) > 1:
        raise ImageError(
            f"{axes} axes of {' x '.join(map(str, sizes[:axes]))}: only one beyond the third may exceed 1;"
            " split it"
        )
    return sizes[0], sizes[1], sizes[2], more[0] if more else 1


def _scaling(slope: float, inter: float) -> tuple[float, float]:
    # In the standard a slope of 0 means none. nibabel writes NaN for an unset slope.
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise ImageError("scl_slope or scl_inter is not a finite number; correct the header")
    return slope, inter


def _affine(fields: _Fields, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return the affine in mm, from the sform or else the qform, and a flag if the two differ."""
    qform_code, sform_code = fields["qform_code"], fields["sform_code"]
    units = fields["xyzt_units"] & 7
    if units not in _MM:
        raise ImageError(f"the unit of length has code {units}; 0 to 3 exist, correct xyzt_units")
    if not 0 <= qform_code <= 5 or not 0 <= sform_code <= 5:
        raise ImageError("qform_code or sform_code is not from 0 to 5; the header is damaged")
    if qform_code == 0 and sform_code == 0:
        raise ImageError(
            "neither qform nor sform gives the orientation (both codes are 0); left and right are unknown,"
            " convert the image again from its DICOM"
        )
    flags: tuple[str, ...] = ()
    if sform_code:
        affine = np.array([fields["srow_x"], fields["srow_y"], fields["srow_z"], [0, 0, 0, 1]], np.float64)
        _check_affine(affine, "sform")
        if qform_code:
            flags = _compare_forms(affine, _qform(fields), shape, (qform_code, sform_code))
    else:
        affine = _qform(fields)
    affine[:3] *= _MM[units]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() < 1e-5 or lengths.max() > 1000:
        raise ImageError(
            f"voxels of {lengths[0]:g} x {lengths[1]:g} x {lengths[2]:g} mm; correct pixdim, sform or"
            " xyzt_units"
        )
    return affine, flags


def _check_affine(affine: NDArray[np.float64], which: str) -> None:
    if not np.isfinite(affine).all():
        raise ImageError(f"the {which} holds a value that is not a finite number; correct the header")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / np.where(lengths > 0, lengths, 1))) < 1e-3:
        raise GeometryError(
            f"the {which} is singular: two axes of the image point the same way; correct the header"
        )


def _qform(fields: _Fields) -> NDArray[np.float64]:
    """Return the affine of the qform (nifti1.h, method 2)."""
    b, c, d = (fields[f"quatern_{axis}"] for axis in "bcd")
    offset = [fields[f"qoffset_{axis}"] for axis in "xyz"]
    pixdim = fields["pixdim"]
    if not all(math.isfinite(value) for value in (b, c, d, *offset, *pixdim[:4])):
        raise ImageError("the qform holds a value that is not a finite number; correct the header")
    if min(pixdim[1:4]) <= 0:
        raise ImageError(
            f"pixdim is {pixdim[1]:g} x {pixdim[2]:g} x {pixdim[3]:g}; each must exceed 0, correct the header"
        )
    square = b * b + c * c + d * d
    if square > 1 + _UNIT_SLACK:
        raise ImageError(
            f"the qform's quaternion is not a rotation (its squares sum to {square:.4f}); correct the header"
        )
    if pixdim[0] not in (-1, 0, 1):
        raise ImageError("pixdim[0], the handedness of the qform, is not 1 or -1; correct the header")
    a = math.sqrt(1 - square) if 1 - square > _HALF_TURN else 0.0
    length = math.sqrt(a * a + square)
    a, b, c, d = a / length, b / length, c / length, d / length
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c],
            [2 * b * c + 2 * a * d, a * a + c * c - b * b - d * d, 2 * c * d - 2 * a * b],
            [2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a + d * d - c * c - b * b],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array([pixdim[1], pixdim[2], pixdim[3] * (-1 if pixdim[0] == -1 else 1)])
    affine[:3, 3] = offset
    return affine


def _compare_forms(
    sform: NDArray[np.float64], qform: NDArray[np.float64], shape: tuple[int, ...], codes: tuple[int, ...]
) -> tuple[str, ...]:
    corners = np.array([[x, y, z, 1] for x in (0, shape[0]) for y in (0, shape[1]) for z in (0, shape[2])])
    distance_mm = float(np.linalg.norm((sform - qform)[:3] @ corners.T, axis=0).max())
    smallest = float(np.linalg.norm(sform[:3, :3], axis=0).min())
    if distance_mm <= _DIFFER_VOXELS * smallest:
        return ()
    if codes[0] == codes[1] and distance_mm > _REFUSE_VOXELS * smallest:
        raise GeometryError(
            f"qform and sform claim the same space (code {codes[0]}) and place a corner {distance_mm:.2f} mm"
            " apart; remove the wrong one"
        )
    return ("qform_differs",)
