"""A predicted mask on the slices of its source series, by position in the patient."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import hard_series as hs
import numpy as np
import pytest

from medfed.data.case import Case
from medfed.errors import RunError
from medfed.pipeline.dicom_seg import dicom_segmentation, resample_to_slice, source_slices

# 3 by 4 by 2 voxels of 2 by 3 by 5 mm, each with a number of its own; the first lies at (10, 20, 30) mm RAS.
LABELS = np.arange(1, 25).reshape(3, 4, 2)
AFFINE = np.array([[2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 5, 30], [0, 0, 0, 1]])


def axial(position_lps, rows=4, columns=3, spacing=(3.0, 2.0), orientation=(-1, 0, 0, 0, -1, 0)):
    """A slice whose columns run to the patient's right and whose rows run to the front, as the voxels do."""
    return SimpleNamespace(
        ImagePositionPatient=position_lps, ImageOrientationPatient=orientation, PixelSpacing=spacing,
        Rows=rows, Columns=columns,
    )  # fmt: skip


def test_a_slice_on_the_grid_takes_its_own_labels():
    for z in (0, 1):
        pixels = resample_to_slice(LABELS, AFFINE, axial((-10, -20, 30 + 5 * z)))
        np.testing.assert_array_equal(pixels, LABELS[:, :, z].T)


def test_a_slice_turned_the_other_way_takes_them_turned():
    # Columns to the patient's left from the rightmost voxel, rows to the back from the foremost.
    turned = axial((-14, -29, 35), orientation=(1, 0, 0, 0, 1, 0))
    np.testing.assert_array_equal(resample_to_slice(LABELS, AFFINE, turned), LABELS[::-1, ::-1, 1].T)


def test_pixels_outside_the_mask_are_0_and_others_take_the_nearest_voxel():
    # One voxel further to the left, and 2 mm above the lower slice, which is nearest to it.
    pixels = resample_to_slice(LABELS, AFFINE, axial((-8, -20, 32)))
    np.testing.assert_array_equal(pixels[:, 0], 0)
    np.testing.assert_array_equal(pixels[:, 1:], LABELS[:2, :, 0].T)
    assert not resample_to_slice(LABELS, AFFINE, axial((-10, -20, 38))).any()


def case(*sources):
    return Case(id="a", patient="a", token="a", image=sources)


def test_slices_are_in_spatial_order_whatever_their_files_are_called(tmp_path):
    paths = hs.write_series(tmp_path, hs.Series(shape=(5, 5, 6)))
    paths[0].rename(tmp_path / "zz.dcm")
    (tmp_path / "notes.txt").write_text("no image")
    headers = source_slices(case(tmp_path))
    heights = [float(one.ImagePositionPatient[2]) for one in headers]
    assert len(heights) == 5
    assert heights == sorted(heights)
    assert (
        source_slices(case(*[tuple(tmp_path.glob("*.dcm"))]))[0].SOPInstanceUID == headers[0].SOPInstanceUID
    )


def test_an_image_of_another_format_has_no_slices(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"\x1f\x8b nothing")
    assert source_slices(case(tmp_path / "a.nii.gz")) == []
    assert dicom_segmentation(LABELS, AFFINE, case(tmp_path / "a.nii.gz"), ["background"]) is None


def test_several_series_and_an_empty_mask_are_refused(tmp_path):
    hs.write_series(tmp_path / "a", hs.Series(shape=(5, 5, 6)))
    hs.write_series(tmp_path / "b", hs.Series(shape=(5, 5, 6)))
    with pytest.raises(RunError, match="the image has several series; its mask is written as NIfTI only"):
        source_slices(case(tmp_path / "a", tmp_path / "b"))
    with pytest.raises(RunError, match="no structure was found, so no DICOM SEG was written"):
        dicom_segmentation(np.zeros((3, 4, 2), int), AFFINE, case(tmp_path / "a"), ["background", "lesion"])


def test_slices_without_a_position_are_refused(tmp_path):
    def without_position(ds, k):
        del ds.ImagePositionPatient

    hs.write_series(tmp_path, hs.Series(shape=(5, 5, 6)), without_position)
    with pytest.raises(RunError, match="several frames, or as a radiograph no position in the patient"):
        source_slices(case(Path(tmp_path)))
