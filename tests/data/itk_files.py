"""MetaImage and NRRD files for tests, written by hand, and SimpleITK's word on them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest

from medfed.data.read import read

RAS = np.diag([-1.0, -1.0, 1.0])
META = {"i2": "MET_SHORT", "u1": "MET_UCHAR", "f4": "MET_FLOAT", "f8": "MET_DOUBLE", "u2": "MET_USHORT"}
NRRD = {"i2": "short", "u1": "uchar", "f4": "float", "f8": "double", "u2": "ushort"}


def numbers(values) -> str:
    return " ".join(repr(float(value)) for value in np.ravel(values))


def stored(array, order="<") -> bytes:
    return array.astype(array.dtype.newbyteorder(order)).tobytes("F")


def changed(fields, change):
    """Return fields in their order with some replaced, or left out where the change is None."""
    return {key: value for key, value in (fields | (change or {})).items() if value is not None}


def write_meta(path: Path, array, affine_ras, *, packed=False, order="<", change=None, raw="a.raw") -> Path:
    """Write an array (X, Y, Z) as .mha, or as .mhd with a file of voxels beside it."""
    lps = RAS @ affine_ras[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    data = stored(array, order)
    data = zlib.compress(data) if packed else data
    local = path.suffix == ".mha"
    fields = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": order == ">",
        "CompressedData": packed,
        **({"CompressedDataSize": len(data)} if packed else {}),
        "TransformMatrix": numbers((lps[:, :3] / spacing).T),
        "Offset": numbers(lps[:, 3]),
        "ElementSpacing": numbers(spacing),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": META[array.dtype.str[1:]],
        "Name": "CANARY",
    }
    fields = changed(fields | {"ElementDataFile": "LOCAL" if local else raw}, change)
    fields["ElementDataFile"] = fields.pop("ElementDataFile")
    header = "".join(f"{key} = {value}\n" for key, value in fields.items()).encode()
    path.write_bytes(header + data if local else header)
    if not local:
        (path.parent / raw).write_bytes(data)
    return path


def write_nrrd(path: Path, array, affine_ras, *, packed=False, order="<", change=None, keys=None) -> Path:
    """Write an array (X, Y, Z) or (C, X, Y, Z) as .nrrd, or as .nhdr with a file of voxels beside it."""
    lps = RAS @ affine_ras[:3]
    vectors = ["(" + ",".join(repr(float(v)) for v in lps[:, axis]) + ")" for axis in range(4)]
    more = ["none"] * (array.ndim - 3)
    data = stored(array, order)
    data = gzip.compress(data) if packed else data
    fields = {
        "type": NRRD[array.dtype.str[1:]],
        "dimension": array.ndim,
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, array.shape)),
        "space directions": " ".join([*more, *vectors[:3]]),
        "kinds": " ".join(["list"] * len(more) + ["domain"] * 3),
        "endian": "little" if order == "<" else "big",
        "encoding": "gzip" if packed else "raw",
        "space origin": vectors[3],
        "content": "CANARY",
    }
    if path.suffix == ".nhdr":
        fields["data file"] = "a.raw"
    fields = changed(fields, change)
    lines = ["NRRD0005", "# by hand", *(f"{key}: {value}" for key, value in fields.items())]
    lines += [f"{key}:={value}" for key, value in (keys or {}).items()]
    header = "\n".join(lines).encode() + b"\n\n"
    path.write_bytes(header if path.suffix == ".nhdr" else header + data)
    if path.suffix == ".nhdr":
        (path.parent / "a.raw").write_bytes(data)
    return path


def same_as_itk(path: Path, atol=1e-5):
    """Return the volume that we read, after comparing it with SimpleITK's."""
    sitk = pytest.importorskip("SimpleITK")
    (volume,) = read(path)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image).T.astype(np.float32))
    affine = np.eye(4)
    affine[:3, :3] = RAS @ (np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing()))
    affine[:3, 3] = RAS @ np.array(image.GetOrigin())
    np.testing.assert_allclose(volume.affine_ras, affine, atol=atol)
    return volume
