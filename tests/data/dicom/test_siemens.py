"""Siemens mosaics: split into slices where their private header describes them, refused where it does not."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, assert_in_place, expected_affine, make_slice, put_pixels, write
from pydicom.dataset import FileDataset

from medfed.data.dicom.siemens import read_csa
from medfed.data.read import read
from medfed.errors import ImageError

SERIES = Series(shape=(7, 6, 8), modality="MR", orientation=hs.OBLIQUE, slope=0.5, intercept=0.0, step_mm=3.0)


def csa(elements: Mapping[str, Sequence[str]]) -> bytes:
    """Return a CSA header (version 2) with these elements."""
    data = b"SV10\4\3\2\1" + struct.pack("<II", len(elements), 77)
    for name, values in elements.items():
        data += name.encode().ljust(64, b"\0") + struct.pack("<i4siii", 1, b"FD\0\0", 4, len(values), 77)
        for value in values:
            text = value.encode() + b"\0"
            data += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return data


def mosaic(series: Series, *, reverse: bool = False, **elements: Sequence[str]) -> FileDataset:
    """Return a series as one image of 3 x 3 tiles; `reverse` stores the last slice first."""
    count, rows, columns = series.shape
    order = [count - 1 - k for k in range(count)] if reverse else list(range(count))
    image = np.zeros((3 * rows, 3 * columns), np.int64)
    for tile, k in enumerate(order):
        row, column = tile // 3 * rows, tile % 3 * columns
        image[row : row + rows, column : column + columns] = series.stored(k)
    ds = make_slice(series, 0)
    right, down = np.asarray(series.orientation[:3]), np.asarray(series.orientation[3:])
    # The centre of the whole image is that of the first tile.
    beside, above = columns * series.spacing_mm[1] * right, rows * series.spacing_mm[0] * down
    corner = series.position(order[0]) - beside - above
    ds.ImagePositionPatient = [f"{v:.6f}" for v in corner]
    ds.SpacingBetweenSlices = series.step_mm
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    put_pixels(ds, image)
    normal = -series.normal if reverse else series.normal
    described = {
        "NumberOfImagesInMosaic": [str(count)],
        "SliceNormalVector": [f"{v:.8f}" for v in normal],
        "ProtocolSliceNumber": ["0"],
    } | elements
    ds.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
    ds.add_new(0x00291010, "OB", csa(described))
    return ds


@pytest.mark.parametrize("reverse", [False, True])
def test_every_tile_is_at_its_place(tmp_path: Path, reverse: bool) -> None:
    (volume,) = read(write(mosaic(SERIES, reverse=reverse), tmp_path / "a.dcm"))
    assert_in_place(volume, shape=(8, 6, 7))
    np.testing.assert_allclose(volume.affine_ras, expected_affine(SERIES), atol=1e-4)


def test_a_time_series_of_mosaics_is_one_volume_per_image(tmp_path: Path) -> None:
    for number in range(3):
        ds = mosaic(SERIES)
        ds.AcquisitionTime, ds.AcquisitionDate = f"12000{number}", "20200101"
        write(ds, tmp_path / f"{number}.dcm")
    volumes = read(tmp_path)
    assert len(volumes) == 3
    for volume in volumes:
        assert_in_place(volume, shape=(8, 6, 7))


@pytest.mark.parametrize("private", [True, False])
def test_a_mosaic_that_lost_its_image_type_is_refused(tmp_path: Path, private: bool) -> None:
    ds = make_slice(Series(modality="MR"), 0)
    if private:
        ds.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
        ds.add_new(0x0019100A, "US", 35)
    else:
        ds.add_new(0x00291010, "OB", csa({"NumberOfImagesInMosaic": ["35"]}) + bytes(40))
    with pytest.raises(ImageError, match=r"Siemens mosaic: .* are missing"):
        read(write(ds, tmp_path / "a.dcm"))


@pytest.mark.parametrize(
    ("elements", "match"),
    [
        ({"SliceNormalVector": ["1", "0", "0"]}, "is not the normal of the image"),
        ({"ProtocolSliceNumber": ["6"]}, "first tile is not the first slice"),
        ({"SliceNormalVector": []}, "are missing"),
        ({"NumberOfImagesInMosaic": ["17"]}, "18 x 24 pixels for 17 slices"),
    ],
)
def test_a_mosaic_of_contradictions_is_refused(
    tmp_path: Path, elements: Mapping[str, Sequence[str]], match: str
) -> None:
    with pytest.raises(ImageError, match=match):
        read(write(mosaic(SERIES, **elements), tmp_path / "a.dcm"))


def test_a_damaged_private_header_is_none() -> None:
    whole = csa({"NumberOfImagesInMosaic": ["35"], "SliceNormalVector": ["0", "0", "1"]})
    assert read_csa(whole)["SliceNormalVector"] == ("0", "0", "1")
    for end in range(len(whole)):
        assert read_csa(whole[:end]) in ({}, read_csa(whole))
    assert read_csa(b"") == read_csa(b"SV10\4\3\2\1" + b"\xff" * 500) == {}
