"""NIfTI files for tests, and nibabel's word on them."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from medfed.data.read import read

AFFINE = np.array([[-1.5, 0.2, 0.1, 30.0], [0.1, 2.0, -0.3, -20.0], [0.05, 0.3, 2.5, 7.0], [0, 0, 0, 1]])


def voxels(shape=(5, 6, 7), dtype=np.int16):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def write(path, array, affine=AFFINE, kind=nib.Nifti1Image, sform=1, qform=0, edit=None, header=None):
    image = kind(array, affine, header, dtype=None if header is not None else array.dtype)
    image.set_sform(affine, code=sform)
    image.set_qform(affine if qform else None, code=qform)
    if edit is not None:
        edit(image.header)
    image.to_filename(path)
    return path


def same_as_nibabel(path):
    (volume,) = read(path)
    image = nib.load(path)
    np.testing.assert_array_equal(volume.array[0], image.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine_ras, image.affine, atol=1e-6)
    return volume
