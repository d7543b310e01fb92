"""Compressed NIfTI: damage and truncation are refused, whichever library unpacks."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from medfed.data.read import read
from medfed.errors import ImageError

from .nifti_files import same_as_nibabel, voxels, write


def test_a_damaged_gz_is_refused(tmp_path):
    path = write(tmp_path / "a.nii.gz", voxels((20, 20, 20)))
    sound = path.read_bytes()
    for at, match in (
        (len(sound) - 6, "CRC"),
        (len(sound) // 2, "damaged"),
        (len(sound) - 2, "CRC|damaged|more|announces"),
    ):
        data = bytearray(sound)
        data[at] ^= 0x55
        path.write_bytes(data)
        with pytest.raises(ImageError, match=match):
            read(path)
    for cut in (1, 8, 100, len(sound) - 30):
        path.write_bytes(sound[:-cut])
        with pytest.raises(ImageError, match=r"truncated|damaged|holds"):
            read(path)


@pytest.mark.parametrize("piece", [100, 300, 5000])
def test_a_gz_of_many_members_is_one_file(tmp_path, piece):
    """Several members, as bgzip and some archives write; the first may end within the header."""
    plain = write(tmp_path / "a.nii", voxels((20, 20, 20))).read_bytes()
    members = [gzip.compress(plain[i : i + piece]) for i in range(0, len(plain), piece)]
    (tmp_path / "b.nii.gz").write_bytes(b"".join(members))
    (volume,) = read(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(volume.array, read(tmp_path / "a.nii")[0].array)


@pytest.mark.parametrize("missing", [(), ("deflate",), ("deflate", "isal")], ids=str)
def test_every_inflater_gives_the_same_and_checks_the_crc(tmp_path, missing, monkeypatch):
    import sys

    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    path = write(tmp_path / "a.nii.gz", voxels((20, 20, 20)))
    same_as_nibabel(path)
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw[:5000]) + gzip.compress(raw[5000:]))  # two members are one file
    same_as_nibabel(path)
    path.write_bytes(gzip.compress(raw + b"\0"))
    with pytest.raises(ImageError, match="more than the"):
        read(path)
    data = bytearray(gzip.compress(raw))
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match="CRC"):
        read(path)
