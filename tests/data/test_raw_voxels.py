"""Blocks of voxels: exactly as many bytes as announced, packed in each way, or refused with the reason."""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest

from medfed.data.raw_voxels import RawBlock, beside, float_volume, patient_affine, read_block
from medfed.data.read_options import ReadOptions
from medfed.data.refusals import GeometryError
from medfed.errors import ImageError

# By numpy's order the slowest axis comes first: 2 slices of 3 rows of 4 values.
VALUES = np.arange(24, dtype=">i2").reshape(2, 3, 4)
PACKED = {
    "raw": bytes,
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "text": lambda data: " ".join(map(str, np.frombuffer(data, ">i2"))).encode(),
}


def block(folder: Path, content: bytes, packing: str, offset: int | None = 0, dtype: str = ">i2") -> RawBlock:
    (folder / "voxels").write_bytes(content)
    return RawBlock(str(folder / "voxels"), (4, 3, 2), np.dtype(dtype), offset, packing, "an NRRD file")


def refused(one: RawBlock, words: str) -> None:
    with pytest.raises(ImageError, match=rf"^an NRRD file {words}"):
        read_block(one, ReadOptions())


@pytest.mark.parametrize("packing", PACKED)
def test_values_are_those_that_were_packed_behind_the_header(tmp_path: Path, packing: str) -> None:
    content = b"HEADER" + PACKED[packing](VALUES.tobytes())
    stored = read_block(block(tmp_path, content, packing, 6), ReadOptions())
    np.testing.assert_array_equal(stored, VALUES)
    assert stored.dtype == VALUES.dtype


def test_a_block_without_an_offset_is_the_end_of_the_file(tmp_path: Path) -> None:
    content = b"a header of any length" + VALUES.tobytes()
    np.testing.assert_array_equal(read_block(block(tmp_path, content, "raw", None), ReadOptions()), VALUES)
    refused(block(tmp_path, VALUES.tobytes()[:-1], "raw", None), "is truncated: 47 bytes, .* announces 48")


def test_a_block_of_another_length_is_refused(tmp_path: Path) -> None:
    data = VALUES.tobytes()
    refused(block(tmp_path, data[:-2], "raw"), "is truncated: 46 bytes, but its header announces 48")
    refused(block(tmp_path, data + b"\0", "raw"), "is damaged: 49 bytes, but its header announces 48")
    for packing in ("zlib", "bzip2"):
        pack = PACKED[packing]
        refused(block(tmp_path, pack(data[:-2]), packing), "is truncated: its compressed voxels end early")
        refused(block(tmp_path, pack(data)[:-1], packing), "is truncated: its compressed voxels end early")
        refused(block(tmp_path, pack(data + b"\0"), packing), "is damaged: it holds more voxels than")
        refused(block(tmp_path, pack(data) + b"\0", packing), "is damaged: it holds more voxels than")
        refused(block(tmp_path, b"\1" + pack(data), packing), "is damaged: its voxels do not unpack")
    flipped = bytearray(zlib.compress(data))
    flipped[-1] ^= 1
    refused(block(tmp_path, bytes(flipped), "zlib"), "is damaged: its voxels do not unpack")
    refused(
        block(tmp_path, zlib.compress(data) + bytes(1 << 21), "zlib"), "has far more bytes than its header"
    )


def test_numbers_in_text_are_of_the_announced_count_and_type(tmp_path: Path) -> None:
    words = [str(n) for n in range(24)]
    refused(
        block(tmp_path, " ".join(words[1:]).encode(), "text"), "holds 23 numbers in text, .* announces 24"
    )
    for wrong in ("1.5", "x", "40000"):
        refused(
            block(tmp_path, " ".join([wrong, *words[1:]]).encode(), "text"), "holds a word that is no number"
        )
    halves = " ".join(f"{n}.5" for n in range(24)).encode()
    stored = read_block(block(tmp_path, halves, "text", dtype="<f4"), ReadOptions())
    np.testing.assert_array_equal(stored.ravel(), np.arange(24) + 0.5)
    refused(block(tmp_path, b" " * (2 << 20), "text"), "has far more bytes than its header announces")


def test_a_block_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="an NRRD file"):
        read_block(block(tmp_path, VALUES.tobytes(), "raw"), ReadOptions(max_bytes=10))


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/a", "b\\a", "a\0", "a%03d"])
def test_a_file_of_voxels_outside_the_headers_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match=r"^an NRRD file names a file of voxels outside its own folder"):
        beside(str(tmp_path / "a.nhdr"), name, "an NRRD file")


def test_a_file_of_voxels_is_a_regular_file_beside_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.raw").touch()
    (tmp_path / "folder").mkdir()
    assert beside(str(tmp_path / "a.nhdr"), "a.raw", "an NRRD file") == str(tmp_path / "a.raw")
    for name in ("b.raw", "folder"):
        with pytest.raises(ImageError, match=r"^an NRRD file names a file of voxels that is not beside it"):
            beside(str(tmp_path / "a.nhdr"), name, "an NRRD file")


def test_values_become_float32_in_memory_of_their_own() -> None:
    stored = np.array([1, 2], np.float32)
    array, has_nan = float_volume(stored)
    stored[0] = 9
    assert (array.tolist(), array.dtype, has_nan) == ([1, 2], np.float32, False)
    assert float_volume(np.array([1, np.nan]))[1] is True
    # The sum of these is infinite, although none of them is.
    assert float_volume(np.array([1.5e308, 1.5e308]) * 1e-300)[1] is False
    for beyond in (np.array([np.inf]), np.array([1e39])):
        with pytest.raises(ImageError, match=r"^a voxel is infinite, or beyond what float32 holds"):
            float_volume(beyond)


def test_an_affine_has_the_steps_as_columns_and_the_first_voxels_centre() -> None:
    steps, origin = np.array([[0.0, 0, 3], [2, 0, 0], [0, 4, 0]]), np.array([5.0, 6, 7])
    expected = [[0, 0, 3, 5], [2, 0, 0, 6], [0, 4, 0, 7], [0, 0, 0, 1]]
    np.testing.assert_array_equal(patient_affine(steps, origin, "an NRRD file"), expected)


@pytest.mark.parametrize(
    ("diagonal", "shear", "words"),
    [
        ((1, 1, np.nan), 0, "gives a position that is not a finite number"),
        ((1, 1, 1001), 0, "has voxels of 1 x 1 x 1001 mm; correct the spacing"),
        ((1, 1, 1e-6), 0, "has voxels of 1 x 1 x 1e-06 mm; correct the spacing"),
        ((1, 1e-4, 1), 1, "is singular: two axes of the image point the same way"),
    ],
)
def test_a_place_without_a_meaning_is_refused(diagonal, shear: float, words: str) -> None:
    steps = np.diag(np.array(diagonal, float))
    steps[0, 1] = shear
    with pytest.raises(GeometryError, match=rf"^an NRRD file {words}"):
        patient_affine(steps, np.zeros(3), "an NRRD file")
