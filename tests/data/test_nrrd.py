"""NRRD: the voxels and the place of SimpleITK's and pynrrd's, or a refusal if the header leaves one open."""

from __future__ import annotations

import bz2
import gzip

import numpy as np
import pytest

from medfed.data.nrrd import read_nrrd
from medfed.data.read import read
from medfed.data.read_options import ReadOptions
from medfed.data.volume_files import files_read
from medfed.errors import ImageError

from .itk_files import same_as_itk, write_nrrd
from .test_metaimage import AFFINE, VOXELS

SEGMENTS = {
    "Segment0_Name": "liver",
    "Segment0_LabelValue": "3",
    "Segment0_Layer": "0",
    "Segment1_Name": "tumour\\nof it",
    "Segment1_LabelValue": "1",
    "Segment1_Layer": "0",
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ["nrrd", "nhdr"])
def test_it_is_what_itk_and_pynrrd_read(tmp_path, ending, packed, order):
    path = write_nrrd(tmp_path / f"a.{ending}", VOXELS, AFFINE, packed=packed, order=order)
    volume = same_as_itk(path)
    np.testing.assert_array_equal(volume.array[0], VOXELS)
    np.testing.assert_allclose(volume.affine_ras, AFFINE, atol=1e-6)
    nrrd = pytest.importorskip("nrrd")
    np.testing.assert_array_equal(volume.array[0], nrrd.read(str(path))[0])


@pytest.mark.parametrize("space, signs", [("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1))])
def test_every_space_becomes_ras(tmp_path, space, signs):
    flip = np.diag([*(np.array(signs) * [-1, -1, 1]), 1])  # written in LPS, so that this space reads AFFINE
    path = write_nrrd(tmp_path / "a.nrrd", VOXELS, flip @ AFFINE, change={"space": space})
    np.testing.assert_allclose(same_as_itk(path).affine_ras, AFFINE, atol=1e-6)


@pytest.mark.parametrize("place", [0, 3])
def test_an_axis_without_direction_is_the_channels(tmp_path, place):
    two = np.stack([VOXELS, 100 + VOXELS])
    path = write_nrrd(tmp_path / "a.nrrd", two, AFFINE)
    if place == 3:
        words = path.read_bytes()
        header, _, _ = words.partition(b"\n\n")
        vectors = header.split(b"space directions: none ")[1].split(b"\n")[0]
        header = header.replace(b"none " + vectors, vectors + b" none").replace(
            b"sizes: 2 4 3 2", b"sizes: 4 3 2 2"
        )
        header = header.replace(b"list domain domain domain", b"domain domain domain list")
        path.write_bytes(header + b"\n\n" + np.moveaxis(two, 0, -1).astype("<i2").tobytes("F"))
    (volume,) = read(path)
    np.testing.assert_array_equal(volume.array, two)
    np.testing.assert_allclose(volume.affine_ras, AFFINE, atol=1e-6)


def test_bzip2_and_text(tmp_path):
    path = write_nrrd(tmp_path / "a.nhdr", VOXELS, AFFINE, change={"encoding": "bzip2"})
    (tmp_path / "a.raw").write_bytes(bz2.compress(VOXELS.tobytes("F")))
    np.testing.assert_array_equal(read(path)[0].array[0], VOXELS)
    path = write_nrrd(tmp_path / "a.nhdr", VOXELS, AFFINE, change={"encoding": "ascii", "endian": None})
    (tmp_path / "a.raw").write_text(" ".join(map(str, VOXELS.ravel("F"))))
    np.testing.assert_array_equal(read(path)[0].array[0], VOXELS)
    (tmp_path / "a.raw").write_text(" ".join(["40000"] * 24))
    with pytest.raises(ImageError, match="no number of its type"):
        read(path)
    (tmp_path / "a.raw").write_text("1 2 3")
    with pytest.raises(ImageError, match="holds 3 numbers in text, its header announces 24"):
        read(path)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"space": None}, "left and right are unknown"),
        ({"space": "scanner-xyz"}, "left and right are unknown"),
        ({"space directions": None}, "left and right are unknown"),
        ({"space directions": "(1,0,0) (0,1,0)"}, "2 space directions for 3 axes"),
        ({"space directions": "(1,0,0) (0,1,0) none"}, "2 axes in space"),
        ({"space directions": "(1,0,0) (0,1,0) (1,0,0)"}, "same way"),
        ({"space directions": "(1,0,0) (0,1,0) (0,0,CANARY)"}, "no numbers"),
        ({"space directions": "(1,0,0) (0,1,0) (0,0,0)"}, "correct the spacing"),
        ({"space origin": None}, "its place is unknown"),
        ({"space units": '"um" "um" "um"'}, "not mm"),
        ({"endian": None}, "byte order is unknown"),
        ({"encoding": "hex"}, "encoding is not"),
        ({"type": "block"}, "type is not"),
        ({"dimension": 4}, "do not match its dimension"),
        ({"sizes": "4 3 9"}, "truncated"),
        ({"sizes": "4 3 1"}, "damaged"),
        ({"sizes": "4000 4000 4000"}, "data.read.max_bytes"),
        ({"old min": "0"}, "quantised"),
        ({"line skip": "1"}, "to skip"),
        ({"kinds": "domain domain"}, "2 kinds for 3 axes"),
        ({"data file": "../CANARY"}, "outside its own folder"),
        ({"data file": "CANARY%03d.raw 1 3 1"}, "several files"),
        ({"data file": "LIST"}, "several files"),
        ({"data file": "CANARY"}, "not beside it"),
    ],
)
def test_what_is_open_or_contradictory_is_refused(tmp_path, change, match):
    path = write_nrrd(tmp_path / "CANARY.nhdr", VOXELS, AFFINE, change=change)
    with pytest.raises(ImageError, match=match) as refusal:
        read(path)
    assert "CANARY" not in str(refusal.value)


@pytest.mark.parametrize(
    "content, match",
    [
        (b"NRRD0009\n", "first line"),
        (b"NRRD0004\ntype: short\n", "does not end"),
        (b"NRRD0004\nCANARY\n\n", "neither a field nor a key"),
        (b"NRRD0004\ntype: short\ntype: short\n\n", "twice"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, content, match):
    (tmp_path / "a.nrrd").write_bytes(content)
    with pytest.raises(ImageError, match=match):
        read(tmp_path / "a.nrrd")


def test_a_bomb_does_not_fill_the_memory(tmp_path):
    path = write_nrrd(tmp_path / "a.nhdr", VOXELS, AFFINE, packed=True)
    (tmp_path / "a.raw").write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(ImageError, match="more than the 48 bytes"):
        read(path)
    path = write_nrrd(tmp_path / "a.nhdr", VOXELS, AFFINE, packed=True, change={"sizes": "800 800 800"})
    (tmp_path / "a.raw").write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(ImageError, match="would grow"):
        read(path)


def as_label(path):
    return read_nrrd(str(path), ReadOptions(as_label=True))


def test_the_segments_of_one_layer_keep_their_values_and_have_names(tmp_path):
    values = np.array([0, 1, 3], np.uint8)[np.arange(24).reshape(4, 3, 2) % 3]
    path = write_nrrd(tmp_path / "a.seg.nrrd", values, AFFINE, keys=SEGMENTS)
    label = as_label(path)
    np.testing.assert_array_equal(label.array[0], values)
    assert dict(label.info.label_names) == {3: "liver", 1: "tumour of it"}
    assert "cropped" in label.info.flags


def test_the_segments_of_several_layers_never_share_a_number(tmp_path):
    layers = np.zeros((2, 4, 3, 2), np.uint8)
    layers[0, :2], layers[1, 1:3] = 1, 1  # they overlap, and both have the value 1
    keys = SEGMENTS | {"Segment0_LabelValue": "1", "Segment1_Layer": "1"}
    label = as_label(write_nrrd(tmp_path / "a.seg.nrrd", layers, AFFINE, keys=keys))
    assert dict(label.info.label_names) == {1: "liver", 2: "tumour of it"}
    np.testing.assert_array_equal(label.array[0], layers[0])
    np.testing.assert_array_equal(label.array[1], 2 * layers[1])


def test_slicers_older_files_hold_a_segment_per_channel(tmp_path):
    layers = np.zeros((2, 4, 3, 2), np.uint8)
    layers[0, :2], layers[1, 1:3] = 1, 1
    keys = {"Segment0_Name": "liver", "Segment1_Name": "tumour"}
    label = as_label(write_nrrd(tmp_path / "a.seg.nrrd", layers, AFFINE, keys=keys))
    assert dict(label.info.label_names) == {1: "liver", 2: "tumour"}
    np.testing.assert_array_equal(label.array.max(axis=(1, 2, 3)), [1, 2])


@pytest.mark.parametrize(
    "change, match",
    [
        ({"Segment1_LabelValue": "3"}, "share a value"),
        ({"Segment1_LabelValue": "0"}, "or one is 0"),
        ({"Segment1_LabelValue": "2"}, "a value that no segment has"),
        ({"Segment1_Layer": "1"}, "without Name, Layer or LabelValue"),
        ({"Segment1_Name": None}, "without Name, Layer or LabelValue"),
    ],
)
def test_segments_that_are_not_clear_are_refused(tmp_path, change, match):
    keys = {key: value for key, value in (SEGMENTS | change).items() if value is not None}
    path = write_nrrd(tmp_path / "a.seg.nrrd", np.ones((4, 3, 2), np.uint8), AFFINE, keys=keys)
    with pytest.raises(ImageError, match=match):
        as_label(path)


def test_the_voxels_beside_a_header_are_a_part_of_it(tmp_path):
    path = write_nrrd(tmp_path / "a.nhdr", VOXELS, AFFINE)
    assert files_read(path) == [path, tmp_path / "a.raw"]
    assert read(tmp_path)[0].info.skipped == ()
