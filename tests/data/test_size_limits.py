"""Files that would grow beyond a hospital's memory are refused before they are unpacked."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from medfed.data.read import read
from medfed.errors import ImageError


def test_a_bomb_is_refused_before_it_unpacks(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((1000, 1000, 400))
    header.set_data_dtype(np.uint8)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + b"\0" * 4 + b"\0" * 400_000))
    with pytest.raises(ImageError, match="would grow from"):
        read(path)
