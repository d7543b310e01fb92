"""The files that a DICOMDIR lists."""

from __future__ import annotations

import hard_series as hs
import pytest
from hard_series import Series, assert_in_place

from medfed.data.dicom.directory import describe_dicomdir
from medfed.data.dicom.file import open_dicom
from medfed.data.read import read
from medfed.errors import ImageError


def test_a_dicomdir_names_the_files_that_are_read(tmp_path):
    from pydicom.fileset import FileSet

    series = Series()
    files = FileSet()
    for k in range(6):
        ds = hs.make_slice(series, k)
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.SeriesNumber = (
            "20200101",
            "120000",
            "1",
            "",
            1,
        )
        files.add(ds)
    files.write(tmp_path / "disc")
    (volume,) = read(tmp_path / "disc" / "DICOMDIR")
    assert_in_place(volume, shape=(7, 5, 6))
    (volume,) = read(tmp_path / "disc")
    assert_in_place(volume, shape=(7, 5, 6))
    assert any("DICOMDIR" in line for line in volume.info.skipped)
    victim = next(p for p in (tmp_path / "disc").rglob("*") if p.is_file() and p.name != "DICOMDIR")
    victim.unlink()
    with pytest.raises(ImageError, match="1 of the 6 files that the DICOMDIR lists"):
        read(tmp_path / "disc" / "DICOMDIR")
    # Read as a folder, the remaining files are a volume, and a note names what may be missing.
    text = "a DICOMDIR, which lists files and holds no image; 1 of its 6 files are missing"
    assert describe_dicomdir(open_dicom(str(tmp_path / "disc" / "DICOMDIR"))) == text
