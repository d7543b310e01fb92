"""One volume in every form that is read: each reader gives the same voxels at the same
places, typed and silent.

A new format joins by a line in FORMS.
"""

from __future__ import annotations

import gzip
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import uid

sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "readers"))

import hard_series as hs

from medfed.data.read import read, read_label
from medfed.data.volume import Info, Volume
from medfed.errors import ImageError

SERIES = hs.Series(shape=(5, 40, 36), orientation=hs.CORONAL, modality="MR", slope=1.0, intercept=0.0)


def classic(folder: Path) -> Path:
    hs.write_series(folder, SERIES, order=[3, 1, 4, 0, 2])
    return folder


def compressed(syntax: str):
    def form(folder: Path) -> Path:
        hs.write_series(folder, SERIES, lambda ds, k: ds.compress(syntax, generate_instance_uid=False))
        return folder

    return form


def enhanced(folder: Path) -> Path:
    return hs.write(hs.enhanced(SERIES, [{"k": k} for k in (2, 0, 4, 1, 3)]), folder / "a.dcm")


def nifti(kind: type, ending: str):
    def form(folder: Path) -> Path:
        values = hs.expected(hs.expected_affine(SERIES), SERIES.shape[::-1]).round().astype(np.int16)
        path = folder / f"a{ending}"
        kind(values, hs.expected_affine(SERIES)).to_filename(path)
        return path

    return form


FORMS = {
    "classic": classic,
    "rle": compressed(uid.RLELossless),
    "jpeg-ls": compressed(uid.JPEGLSLossless),
    "jpeg 2000": compressed(uid.JPEG2000Lossless),
    "enhanced": enhanced,
    "nifti": nifti(nib.Nifti1Image, ".nii"),
    "nifti gz": nifti(nib.Nifti1Image, ".nii.gz"),
    "nifti 2": nifti(nib.Nifti2Image, ".nii"),
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def path(request, tmp_path):
    return request.param(tmp_path)


def test_a_volume_is_what_its_class_promises(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volumes = read(path)
    (volume,) = volumes
    assert isinstance(volume, Volume)
    assert isinstance(volume.info, Info)
    assert volume.array.dtype == np.float32
    assert volume.array.shape == (1, 36, 40, 5)
    assert volume.affine_ras.dtype == np.float64
    assert volume.affine_ras.shape == (4, 4)
    assert volume.shape == (36, 40, 5)
    assert volume.spacing_mm == pytest.approx((0.75, 1.5, 2.5), abs=1e-5)
    assert "CANARY" not in repr(volume.info)


def test_every_voxel_holds_the_value_of_its_place(path):
    (volume,) = read(path)
    hs.assert_in_place(volume, slope=1.0)
    np.testing.assert_allclose(volume.affine_ras, hs.expected_affine(SERIES), atol=1e-5)


def test_reading_twice_gives_the_same_and_nothing_shared(path):
    one, two = read(path)[0], read(path)[0]
    np.testing.assert_array_equal(one.array, two.array)
    assert one.info == two.info
    one.array[...] = 0  # a transform may work in place
    one.affine_ras[...] = 0
    hs.assert_in_place(two, slope=1.0)
    hs.assert_in_place(read(path)[0], slope=1.0)


def test_a_label_of_its_own_grid_fits_and_comes_as_classes(path, tmp_path):
    (volume,) = read(path)
    values = np.zeros(volume.shape, np.uint8)
    values[3:9, 4:8, 1:3] = 2
    nib.Nifti1Image(values, volume.affine_ras).to_filename(tmp_path / "label.nii")
    label = read_label(tmp_path / "label.nii", volume, classes=3)
    np.testing.assert_array_equal(label.array[0], values)
    assert np.issubdtype(label.array.dtype, np.integer)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_cut_file_is_refused(path, keep):
    victim = sorted(path.iterdir())[-1] if path.is_dir() else path
    data = victim.read_bytes()
    victim.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(
        ImageError, match=r"truncated|damaged|cut off|without pixel data|holds|lacks|neither"
    ) as refusal:
        read(path)
    assert "CANARY" not in str(refusal.value)
    assert str(path) not in str(refusal.value)


def test_bytes_behind_a_gz_volume_are_refused(tmp_path):
    path = FORMS["nifti gz"](tmp_path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"more"))
    with pytest.raises(ImageError, match="more than the"):
        read(path)
