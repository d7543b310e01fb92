"""NIfTI: the same voxels and affine as nibabel's, or a refusal if the file is incomplete."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medfed.data.read import read
from medfed.errors import ImageError

from .nifti_files import same_as_nibabel, voxels, write


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", "i8", "u8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_types_versions_and_compression(tmp_path, dtype, kind, ending):
    same_as_nibabel(write(tmp_path / f"a b.c.1{ending}", voxels(dtype=dtype), kind=kind))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_big_endian(tmp_path, kind):
    header = kind.header_class(endianness=">")
    header.set_data_dtype(np.int16)
    path = write(tmp_path / "a.nii", voxels(), kind=kind, header=header)
    assert path.read_bytes()[:2] == b"\0\0"
    same_as_nibabel(path)


def test_slope_and_intercept(tmp_path):
    path = write(tmp_path / "a.nii", voxels())
    patch(path, 112, "<2f", 0.25, -1024.0)
    volume = same_as_nibabel(path)
    assert volume.array.min() < -1000


@pytest.mark.parametrize("slope, inter", [(0.0, 5.0), (float("nan"), 5.0)])
def test_a_slope_of_0_or_nan_is_none(tmp_path, slope, inter):
    path = write(tmp_path / "a.nii", voxels())
    patch(path, 112, "<2f", slope, inter)
    np.testing.assert_array_equal(same_as_nibabel(path).array[0], voxels())


def patch(path, at, code, *values):
    data = bytearray(path.read_bytes())
    struct.pack_into(code, data, at, *values)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "quaternion", [(0, 0, 0), (0, 0, 1), (1, 0, 0), (0.5, 0.5, 0.5), (0.1, 0.2, 0.3), (0.6, 0.79999, 0)]
)
@pytest.mark.parametrize("handed", [1.0, -1.0, 0.0])
def test_a_qform_alone(tmp_path, quaternion, handed):
    path = write(tmp_path / "a.nii", voxels(), np.diag([1.5, 2, 2.5, 1]), sform=0, qform=1)
    patch(path, 76, "<f", handed)
    patch(path, 256, "<6f", *quaternion, 3.0, 4.0, 5.0)
    same_as_nibabel(path)


def test_microns_and_metres_become_mm(tmp_path):
    for unit, factor in (("micron", 0.001), ("meter", 1000.0)):
        affine = np.diag([1.5 / factor, 2 / factor, 2.5 / factor, 1])
        path = write(
            tmp_path / f"{unit}.nii", voxels(), affine, edit=lambda h, unit=unit: h.set_xyzt_units(unit)
        )
        np.testing.assert_allclose(read(path)[0].affine_ras, np.diag([1.5, 2, 2.5, 1]), rtol=1e-6)


def test_nan_is_kept_and_flagged(tmp_path):
    array = voxels(dtype=np.float32)
    array[1, 2, 3] = np.nan
    volume = same_as_nibabel(write(tmp_path / "a.nii.gz", array))
    assert volume.info.flags == ("nan",)


def test_the_fourth_axis_becomes_channels(tmp_path):
    (volume,) = read(write(tmp_path / "a.nii", voxels((5, 6, 7, 3))))
    assert volume.array.shape == (3, 5, 6, 7)
    np.testing.assert_array_equal(volume.array, np.moveaxis(voxels((5, 6, 7, 3)), -1, 0))
    (vector,) = read(write(tmp_path / "b.nii", voxels((5, 6, 7, 1, 3))))
    np.testing.assert_array_equal(vector.array, np.moveaxis(voxels((5, 6, 7, 3)), -1, 0))
    (flat,) = read(write(tmp_path / "c.nii", voxels((5, 6))))
    assert flat.array.shape == (1, 5, 6, 1)
    with pytest.raises(ImageError, match="only one beyond the third"):
        read(write(tmp_path / "d.nii", voxels((5, 6, 7, 2, 3))))


def test_the_file_beside_it_is_not_taken(tmp_path):
    write(tmp_path / "x.nii", voxels())
    write(tmp_path / "x.nii.gz", voxels() + 1)
    assert read(tmp_path / "x.nii.gz")[0].array.sum() - read(tmp_path / "x.nii")[0].array.sum() == 5 * 6 * 7
    (tmp_path / "x.nii").unlink()
    with pytest.raises(ImageError, match="no such file"):
        read(tmp_path / "x.nii")


def test_the_content_decides_not_the_ending(tmp_path):
    path = write(tmp_path / "a.nii.gz", voxels())
    same = path.rename(tmp_path / "scan.2024")
    np.testing.assert_array_equal(read(same)[0].array[0], voxels())


def test_qform_beside_an_sform_of_another_space_is_flagged_and_of_the_same_refused(tmp_path):
    path = write(tmp_path / "a.nii", voxels(), sform=4)
    patch(path, 252, "<h", 1)
    patch(path, 268, "<f", 99.0)
    assert same_as_nibabel(path).info.flags == ("qform_differs",)
    patch(path, 254, "<h", 1)
    with pytest.raises(ImageError, match=r"claim the same space \(code 1\)"):
        read(path)


CASES = {
    "no orientation": (lambda p: patch(p, 252, "<2h", 0, 0), "neither qform nor sform"),
    "singular sform": (lambda p: patch(p, 280, "<12f", *[1.0] * 12), "sform is singular"),
    "zero sform": (lambda p: patch(p, 280, "<12f", *[0.0] * 12), "sform is singular"),
    "nan in sform": (lambda p: patch(p, 280, "<f", np.nan), "not a finite number"),
    "nan in inter": (lambda p: patch(p, 112, "<2f", 2.0, np.nan), "scl_slope or scl_inter"),
    "infinite slope": (lambda p: patch(p, 112, "<2f", np.inf, 0), "scl_slope or scl_inter"),
    "slope too large": (lambda p: patch(p, 112, "<2f", 3e38, 0), "too large for a 32 bit float"),
    "rgb": (lambda p: patch(p, 70, "<2h", 128, 24), "RGB colours"),
    "complex": (lambda p: patch(p, 70, "<2h", 32, 64), "complex numbers"),
    "bitpix": (lambda p: patch(p, 72, "<h", 8), "bitpix is 8"),
    "no axes": (lambda p: patch(p, 40, "<h", 0), "0 axes"),
    "negative axis": (lambda p: patch(p, 42, "<h", -5), "axis of -5 voxels"),
    "smaller axis": (lambda p: patch(p, 42, "<h", 4), "772 bytes, but its header announces 688"),
    "larger axis": (
        lambda p: patch(p, 42, "<h", 6),
        "truncated NIfTI file: 772 bytes, but its header announces 856",
    ),
    "offset": (lambda p: patch(p, 108, "<f", 0.0), "vox_offset"),
    "offset nan": (lambda p: patch(p, 108, "<f", np.nan), "vox_offset"),
    "magic": (lambda p: patch(p, 344, "<4s", b"abc\0"), "not NIfTI|Analyze"),
    "pair": (lambda p: patch(p, 344, "<4s", b"ni1\0"), r"another file \(.img\)"),
    "header size": (lambda p: patch(p, 0, "<i", 347), "neither 348 nor 540"),
    "units": (lambda p: patch(p, 123, "<B", 7), "unit of length has code 7"),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "cut header": (lambda p: p.write_bytes(p.read_bytes()[:347]), "no format that is read|cut off|Analyze"),
    "huge": (lambda p: patch(p, 42, "<3h", 32767, 32767, 32767), r"announces 35181150961663 voxels"),
}


@pytest.mark.parametrize("damage, match", CASES.values(), ids=CASES)
def test_what_could_be_read_wrongly_is_refused(tmp_path, damage, match):
    path = write(tmp_path / "a.nii", voxels())
    damage(path)
    with pytest.raises(ImageError, match=match):
        read(path)


# Those of nibabel's own test files that hold an image; others are pairs, surfaces or damaged on purpose.
NIBABELS = {
    "anatomical.nii": 1,
    "example4d.nii.gz": 2,
    "example_nifti2.nii.gz": 2,
    "functional.nii": 20,
    "reoriented_anat_moved.nii": 1,
    "resampled_anat_moved.nii": 1,
    "standard.nii.gz": 1,
}


@pytest.mark.parametrize("name", NIBABELS)
def test_nibabels_own_files_are_read_as_nibabel_reads_them(name: str) -> None:
    from nibabel.testing import data_path

    path = Path(data_path) / name
    if not path.is_file():
        pytest.skip("this nibabel was installed without its test files")
    saved = nib.load(path)
    expected = np.asanyarray(saved.dataobj).astype(np.float32)
    (volume,) = read(path)
    assert len(volume.array) == NIBABELS[name]
    channels = expected[None] if expected.ndim == 3 else np.moveaxis(expected, 3, 0)
    np.testing.assert_array_equal(volume.array, channels)
    np.testing.assert_allclose(volume.affine_ras, saved.affine, atol=1e-6)
