"""One volume in every form that is read keeps the contract of medfed.testing.

A new format joins by a line in FORMS.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import hard_series as hs
import nibabel as nib
import numpy as np
import pytest
from contract import checks_of, run
from data.itk_files import write_meta, write_nrrd
from pydicom import uid

from medfed.data.read import read
from medfed.data.volume import Volume
from medfed.errors import ImageError
from medfed.testing import ReaderExample, check_reader

SERIES = hs.Series(shape=(5, 40, 36), orientation=hs.CORONAL, modality="MR", slope=1.0, intercept=0.0)
AFFINE = hs.expected_affine(SERIES)
VALUES = hs.expected(AFFINE, SERIES.shape[::-1])


def classic(folder: Path) -> Path:
    hs.write_series(folder, SERIES, order=[3, 1, 4, 0, 2])
    return folder


def compressed(syntax: str) -> Callable[[Path], Path]:
    def form(folder: Path) -> Path:
        hs.write_series(folder, SERIES, lambda ds, k: ds.compress(syntax, generate_instance_uid=False))
        return folder

    return form


def enhanced(folder: Path) -> Path:
    return hs.write(hs.enhanced(SERIES, [{"k": k} for k in (2, 0, 4, 1, 3)]), folder / "a.dcm")


def nifti(kind: type, ending: str) -> Callable[[Path], Path]:
    def form(folder: Path) -> Path:
        path = folder / f"a{ending}"
        kind(VALUES.round().astype(np.int16), AFFINE).to_filename(path)
        return path

    return form


def by_hand(write: Callable[..., Path], name: str, packed: bool) -> Callable[[Path], Path]:
    def form(folder: Path) -> Path:
        path = write(folder / name, VALUES.round().astype(np.int16), AFFINE, packed=packed)
        return folder if name.endswith(("mhd", "nhdr")) else path

    return form


FORMS = {
    "mha": by_hand(write_meta, "a.mha", False),
    "mha zlib": by_hand(write_meta, "a.mha", True),
    "mhd": by_hand(write_meta, "a.mhd", False),
    "mhd zlib": by_hand(write_meta, "a.mhd", True),
    "nrrd": by_hand(write_nrrd, "a.nrrd", False),
    "nrrd gz": by_hand(write_nrrd, "a.nrrd", True),
    "nhdr": by_hand(write_nrrd, "a.nhdr", False),
    "nhdr gz": by_hand(write_nrrd, "a.nhdr", True),
    "classic": classic,
    "rle": compressed(uid.RLELossless),
    "jpeg-ls": compressed(uid.JPEGLSLossless),
    "jpeg 2000": compressed(uid.JPEG2000Lossless),
    "enhanced": enhanced,
    "nifti": nifti(nib.Nifti1Image, ".nii"),
    "nifti gz": nifti(nib.Nifti1Image, ".nii.gz"),
    "nifti 2": nifti(nib.Nifti2Image, ".nii"),
}


@checks_of(check_reader)
@pytest.mark.parametrize("form", FORMS)
def test_it_keeps_the_contract(form: str, check: str) -> None:
    # Stored integers: a value is rounded by at most a half.
    volume = Volume(VALUES[None].astype(np.float32), AFFINE)
    run(check_reader, check, ReaderExample(volume, FORMS[form], tolerance=0.502, private="CANARY"))


def test_bytes_behind_a_gz_volume_are_refused(tmp_path: Path) -> None:
    path = FORMS["nifti gz"](tmp_path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"more"))
    with pytest.raises(ImageError, match="more than the"):
        read(path)
