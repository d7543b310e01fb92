"""MetaImage: the voxels and the place of SimpleITK's, and a refusal wherever the header leaves one open."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from medfed.data.read import read
from medfed.data.volume_files import files_read
from medfed.data.walk import files_below
from medfed.errors import ImageError

from .itk_files import same_as_itk, write_meta

TURN = np.array([[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0], [0.0, 0.0, -1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN * [1.5, 2.0, 3.0]
AFFINE[:3, 3] = [30, -20, 7]
VOXELS = np.arange(24, dtype=np.int16).reshape(4, 3, 2) - 5


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ["mha", "mhd"])
def test_it_is_what_itk_reads(tmp_path, ending, packed, order):
    path = write_meta(tmp_path / f"a.{ending}", VOXELS, AFFINE, packed=packed, order=order)
    volume = same_as_itk(path)
    np.testing.assert_array_equal(volume.array[0], VOXELS)
    np.testing.assert_allclose(volume.affine_ras, AFFINE, atol=1e-6)


@pytest.mark.parametrize("kind", ["u1", "u2", "f4", "f8"])
def test_every_type_is_read(tmp_path, kind):
    same_as_itk(write_meta(tmp_path / "a.mha", (VOXELS + 5).astype(kind), AFFINE))


def test_channels_and_a_fourth_axis_are_channels(tmp_path):
    two = np.stack([VOXELS, 100 + VOXELS])
    change = {"ElementNumberOfChannels": 2, "DimSize": "4 3 2"}
    path = write_meta(tmp_path / "a.mha", two, AFFINE, change=change)
    np.testing.assert_array_equal(read(path)[0].array, two)
    matrix = np.eye(4)
    matrix[:3, :3] = (np.diag([-1, -1, 1]) @ TURN).T
    change = {
        "NDims": 4,
        "TransformMatrix": " ".join(map(str, matrix.ravel())),
        "Offset": "-30 20 7 0",
        "ElementSpacing": "1.5 2 3 1",
    }
    path = write_meta(tmp_path / "b.mha", np.moveaxis(two, 0, -1), AFFINE, change=change)
    (volume,) = read(path)
    np.testing.assert_array_equal(volume.array, two)
    np.testing.assert_allclose(volume.affine_ras, AFFINE, atol=1e-6)


def test_a_radiograph_of_two_axes_lies_in_one_plane(tmp_path):
    change = {"NDims": 2, "TransformMatrix": "1 0 0 1", "Offset": "0 0", "ElementSpacing": "0.2 0.3"}
    path = write_meta(tmp_path / "a.mha", VOXELS[..., 0], AFFINE, change=change)
    (volume,) = read(path)
    np.testing.assert_array_equal(volume.array[0, ..., 0], VOXELS[..., 0])
    np.testing.assert_allclose(volume.affine_ras, np.diag([-0.2, -0.3, 1, 1]))
    assert "projection" in volume.info.flags


def test_numbers_in_text_and_a_header_to_skip(tmp_path):
    path = write_meta(tmp_path / "a.mhd", VOXELS, AFFINE, change={"BinaryData": False})
    (tmp_path / "a.raw").write_text(" ".join(map(str, VOXELS.ravel("F"))))
    np.testing.assert_array_equal(read(path)[0].array[0], VOXELS)
    for size in (10, -1):
        path = write_meta(tmp_path / "a.mhd", VOXELS, AFFINE, change={"HeaderSize": size})
        (tmp_path / "a.raw").write_bytes(bytes(10) + (tmp_path / "a.raw").read_bytes())
        np.testing.assert_array_equal(read(path)[0].array[0], VOXELS)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"TransformMatrix": None}, "left and right are unknown"),
        ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, "no unit vectors"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "same way"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0"}, "8 numbers, expected 9"),
        ({"CenterOfRotation": "1 2 3"}, "CenterOfRotation"),
        ({"ElementSpacing": None}, "ElementSpacing above 0"),
        ({"ElementSpacing": "1 0 1"}, "ElementSpacing above 0"),
        ({"ElementSpacing": "1 nan 1"}, "not a finite number"),
        ({"ElementSpacing": "1 CANARY 1"}, "no number"),
        ({"BinaryData": None}, "without BinaryData"),
        ({"BinaryDataByteOrderMSB": None}, "byte order is unknown"),
        ({"BinaryDataByteOrderMSB": "CANARY"}, "neither True nor False"),
        ({"ElementType": "MET_LONG"}, "4 or 8 bytes"),
        ({"ElementType": "CANARY"}, "ElementType is not one of"),
        ({"ElementToIntensityFunctionSlope": "2"}, "programs read differently"),
        ({"DistanceUnits": "um"}, "not mm"),
        ({"ObjectType": "Scene"}, "holds no image"),
        ({"DimSize": "4 3"}, "2 sizes"),
        ({"DimSize": "4 3 -2"}, "at least 1"),
        ({"DimSize": "4 3 9"}, "truncated"),
        ({"DimSize": "4 3 1"}, "damaged"),
        ({"DimSize": "4000 4000 4000"}, "data.read.max_bytes"),
        ({"NDims": "CANARY"}, "no integer"),
        ({"Position": "1 2 3"}, "Offset twice"),
        ({"ElementDataFile": "LIST"}, "several files"),
        ({"ElementDataFile": "CANARY%03d.raw 1 3 1"}, "several files"),
        ({"ElementDataFile": "../CANARY.raw"}, "outside its own folder"),
        ({"ElementDataFile": "/etc/passwd"}, "outside its own folder"),
        ({"ElementDataFile": "CANARY.raw"}, "not beside it"),
    ],
)
def test_what_is_open_or_contradictory_is_refused(tmp_path, change, match):
    path = write_meta(tmp_path / "CANARY.mhd", VOXELS, AFFINE, change=change)
    with pytest.raises(ImageError, match=match) as refusal:
        read(path)
    assert "CANARY" not in str(refusal.value)


def test_compressed_voxels_end_where_the_header_says(tmp_path):
    path = write_meta(tmp_path / "a.mhd", VOXELS, AFFINE, packed=True, change={"CompressedDataSize": None})
    raw = tmp_path / "a.raw"
    whole, data = raw.read_bytes(), VOXELS.tobytes("F")
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])  # the checksum
    for content, match in (
        (whole[:-1], "truncated"),
        (whole[:8], "truncated"),
        (whole + b"x", "more voxels"),
        (zlib.compress(data + b"x"), "more voxels"),
        (zlib.compress(data[:-1]), "truncated"),
        (zlib.compress(bytes(100_000)), "more voxels"),
        (flipped, "do not unpack"),
        (b"junk", "do not unpack"),
    ):
        raw.write_bytes(content)
        with pytest.raises(ImageError, match=match):
            read(path)


def test_the_voxels_beside_a_header_are_a_part_of_it(tmp_path):
    path = write_meta(tmp_path / "a.mhd", np.zeros((4, 3, 2), np.int16), AFFINE)
    (volume,) = read(tmp_path)  # zeros alone would be taken for a damaged image
    assert volume.info.skipped == ()
    assert files_read(path) == [path, tmp_path / "a.raw"]
    assert files_read(tmp_path) == files_below(tmp_path)
