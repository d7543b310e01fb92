"""Pictures: the values and the place of every pixel, and a refusal of what Pillow would change unseen."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medfed.data.pictures import read_picture
from medfed.data.read import read
from medfed.data.read_options import ReadOptions
from medfed.errors import ImageError

from .nifti_files import voxels, write

GREY = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)
DEEP = (GREY.astype(np.uint16) << 8) + 3
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def png(width, height, depth, colour, rows: bytes) -> bytes:
    """Return a PNG written by hand (RFC 2083); `rows` begin with their filter byte."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def label(path):
    return read_picture(str(path), ReadOptions(as_label=True))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_x_runs_to_the_right_and_y_downwards_as_in_a_radiograph(tmp_path, name):
    for pixels in (GREY, DEEP):
        Image.fromarray(pixels).save(tmp_path / name)
        (volume,) = read(tmp_path / name)
        assert volume.array.dtype == np.float32
        np.testing.assert_array_equal(volume.array, pixels.T[None, ..., None])
        np.testing.assert_array_equal(volume.affine_ras, np.diag([-1, -1, 1, 1]))
        assert volume.info.flags == ("pixels", "single_slice")
    Image.fromarray(COLOUR).save(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name)[0].array[..., 0], COLOUR.transpose(2, 1, 0))


def test_a_jpeg_is_within_its_rounding(tmp_path):
    smooth = np.add.outer(np.arange(16), np.arange(24)).astype(np.uint8) * 3
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=100)
    (volume,) = read(tmp_path / "a.jpg")
    np.testing.assert_allclose(volume.array[0, ..., 0], smooth.T, atol=2)
    assert "lossy" in volume.info.flags


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_keep_their_values(tmp_path, bits):
    values = np.arange(16).reshape(2, 8) % (1 << bits)
    rows = b""
    for row in values:
        number = int("".join(format(value, f"0{bits}b") for value in row), 2)
        rows += b"\0" + number.to_bytes(bits, "big")
    (tmp_path / "a.png").write_bytes(png(8, 2, bits, 0, rows))
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0].array[0, ..., 0], values.T)
    np.testing.assert_array_equal(label(tmp_path / "a.png").array[0, ..., 0], values.T)


def test_a_palette_is_its_colours_and_as_a_label_its_numbers(tmp_path):
    numbers = (GREY % 3).astype(np.uint8)
    image = Image.fromarray(numbers, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 128, 255])
    image.save(tmp_path / "a.png")
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]])[numbers]
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0].array[..., 0], colours.transpose(2, 1, 0))
    mask = label(tmp_path / "a.png")
    np.testing.assert_array_equal(mask.array[0, ..., 0], numbers.T)
    assert dict(mask.info.label_names) == {0: "#000000", 1: "#ff0000", 2: "#0080ff"}
    image.putpalette([value for grey in range(256) for value in (grey,) * 3])
    image.save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0].array.shape == (1, 7, 5, 1)


def test_the_colours_of_a_mask_have_names_and_greys_are_numbers(tmp_path):
    pixels = np.zeros((5, 7, 3), np.uint8)
    pixels[1, 2] = 0, 128, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mask = label(tmp_path / "a.png")
    assert mask.array[0, 2, 1, 0] == 0x0080FF
    assert dict(mask.info.label_names) == {0: "#000000", 0x0080FF: "#0080ff"}
    pixels[1, 2] = 2
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mask = label(tmp_path / "a.png")
    assert mask.array.max() == 2
    assert dict(mask.info.label_names) == {}


@pytest.mark.parametrize(
    "orientation, turned",
    [(3, lambda p: p[::-1, ::-1]), (6, lambda p: np.rot90(p, -1)), (8, np.rot90), (2, lambda p: p[:, ::-1])],
)
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_an_exif_orientation_is_applied_and_flagged(tmp_path, name, orientation, turned):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(GREY).save(tmp_path / name, exif=exif)
    (volume,) = read(tmp_path / name)
    np.testing.assert_array_equal(volume.array[0, ..., 0], turned(GREY).T)
    assert "exif_turned" in volume.info.flags


def test_an_opaque_alpha_is_dropped_and_transparency_refused(tmp_path):
    alpha = np.full((5, 7, 1), 255, np.uint8)
    Image.fromarray(np.concatenate([COLOUR, alpha], axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0].array[..., 0], COLOUR.transpose(2, 1, 0))
    alpha[2, 2] = 254
    Image.fromarray(np.concatenate([COLOUR, alpha], axis=2)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="transparent pixels"):
        read(tmp_path / "a.png")
    Image.fromarray(GREY).save(tmp_path / "a.png", transparency=int(GREY[0, 0]))
    with pytest.raises(ImageError, match="transparent pixels"):
        read(tmp_path / "a.png")


def test_what_pillow_would_change_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1, 1, 16, 2, b"\0" + bytes(range(6))))
    with pytest.raises(ImageError, match="16 bits per colour"):
        read(tmp_path / "a.png")
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="colours in CMYK"):
        read(tmp_path / "a.jpg")
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="picture of 2 pages"):
        read(tmp_path / "a.tif")
    Image.fromarray(GREY).save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="mask stored as JPEG"):
        label(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_no_truncated_picture_is_read(tmp_path, name):
    Image.fromarray(COLOUR).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in range(1, len(whole), 7):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ImageError) as refusal:
            read(tmp_path / name)
        assert str(tmp_path) not in str(refusal.value)


def test_a_damaged_pixel_of_a_png_is_noticed(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="truncated or damaged"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("side, match", [(9400, "would grow"), (40_000, "million pixels")])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, side, match):
    (tmp_path / "a.png").write_bytes(png(side, side, 8, 2, bytes(1 << 20)))
    with pytest.raises(ImageError, match=match):
        read(tmp_path / "a.png")


def test_a_screenshot_beside_a_scan_is_left_out_and_pictures_alone_are_read(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert len(read(tmp_path)) == 1
    write(tmp_path / "b.nii", voxels())
    (volume,) = read(tmp_path)
    assert volume.shape == (5, 6, 7)
    assert volume.info.skipped == ("a picture (PNG, JPEG or TIFF) beside other images",)


def tiff(array: np.ndarray, photometric: int, sample_format: int) -> bytes:
    """Return a TIFF of one grey page, written by hand: Pillow writes neither signed bytes nor white as 0."""
    data, (rows, columns), offset = array.tobytes(), array.shape, 8 + 2 + 10 * 12 + 4
    tags = [
        (256, columns),
        (257, rows),
        (258, 8 * array.itemsize),
        (259, 1),
        (262, photometric),
        (273, offset),
    ]
    tags += [(277, 1), (278, rows), (279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


@pytest.mark.parametrize(
    ("kind", "sample_format", "photometric", "expected"),
    [
        ("u1", 1, 0, [255, 254, 155, 0]),
        ("u2", 1, 0, [65535, 65534, 65435, 65280]),
        ("u2", 1, 1, [0, 1, 100, 255]),
        ("i1", 2, 1, [0, 1, 100, -1]),
        ("u4", 1, 1, [0, 1, 100, 2**32 - 256]),
        ("i4", 2, 1, [0, 1, 100, -256]),
    ],
)
def test_a_tiff_is_read_as_its_header_declares(tmp_path, kind, sample_format, photometric, expected):
    top = {"u1": 255, "u2": 255, "i1": -1, "u4": 2**32 - 256, "i4": -256}[kind]
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(np.array([[0, 1, 100, top]], kind), photometric, sample_format))
    (volume,) = read(path)
    np.testing.assert_array_equal(volume.array[0, :, 0, 0], np.float32(expected))
    assert ("inverted" in volume.info.flags) == (photometric == 0)


def test_a_tiff_whose_black_is_unknown_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(np.zeros((2, 3), "f4"), 0, 3))
    with pytest.raises(ImageError, match="32 bits with 0 for white, whose black is not known"):
        read(path)
