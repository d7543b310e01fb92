"""Labels on their volume's grid: axes, classes, shifted grids, and folders that hold a label."""

from __future__ import annotations

import hard_series as hs
import nibabel as nib
import numpy as np
import pytest
from hard_series import segmentation, write

from medfed.data.read import read, read_label
from medfed.errors import ImageError, LabelError


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_a_nifti_label_in_any_axis_order(tmp_path, volume, order, flips):
    classes = np.random.default_rng(0).integers(0, 3, volume.shape).astype(np.uint8)
    image = nib.Nifti1Image(classes, volume.affine_ras)
    ornt = np.stack([order, flips], axis=1)
    image.as_reoriented(ornt).to_filename(tmp_path / "a.nii.gz")
    label = read_label(tmp_path / "a.nii.gz", volume, classes=3)
    np.testing.assert_array_equal(label.array[0], classes)
    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(label.affine_ras, volume.affine_ras)


def nifti(tmp_path, values, affine):
    nib.Nifti1Image(values, affine).to_filename(tmp_path / "label.nii.gz")
    return tmp_path / "label.nii.gz"


def test_values_that_are_nearly_whole_are_rounded_and_others_refused(tmp_path, volume):
    values = np.full(volume.shape, 0.99999, np.float32)
    assert set(np.unique(read_label(nifti(tmp_path, values, volume.affine_ras), volume).array)) == {1}
    values[0, 0, 0] = 0.4
    with pytest.raises(LabelError, match=r"0\.400 from an integer"):
        read_label(nifti(tmp_path, values, volume.affine_ras), volume)
    values[0, 0, 0] = np.nan
    with pytest.raises(LabelError, match="not finite numbers"):
        read_label(nifti(tmp_path, values, volume.affine_ras), volume)


def test_values_that_are_no_class_are_refused(tmp_path, volume):
    values = np.zeros(volume.shape, np.int16)
    values[1, 1, 1], values[2, 2, 2] = 3, 255
    with pytest.raises(LabelError, match="values 3, 255; the task has classes 0 to 2"):
        read_label(nifti(tmp_path, values, volume.affine_ras), volume, classes=3)
    assert read_label(nifti(tmp_path, values, volume.affine_ras), volume).array.max() == 255
    values[0, 0, 0] = -1
    with pytest.raises(LabelError, match="values -1;"):
        read_label(nifti(tmp_path, values, volume.affine_ras), volume)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [1.0, 0.5, 0.1, -0.06])
def test_shifted_grids_are_refused(tmp_path, volume, axis, voxels):
    affine = volume.affine_ras.copy()
    affine[:3, 3] += voxels * affine[:3, axis]
    with pytest.raises(LabelError, match="shifted: corners lie up to"):
        read_label(nifti(tmp_path, np.zeros(volume.shape, np.uint8), affine), volume)


def test_a_float32_turn_about_the_first_voxel_is_no_shift(tmp_path, volume):
    angle = 4e-4  # what a float32 quaternion near a half turn can be off by
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = volume.affine_ras.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    values = np.ones(volume.shape, np.uint8)
    assert read_label(nifti(tmp_path, values, affine), volume).array.min() == 1


def test_other_sizes_spacings_and_directions_are_refused(tmp_path, volume):
    with pytest.raises(LabelError, match="label has 11 x 9 x 5 voxels, the image 11 x 9 x 6"):
        read_label(nifti(tmp_path, np.zeros((11, 9, 5), np.uint8), volume.affine_ras), volume)
    coarse = volume.affine_ras @ np.diag([2, 2, 2, 1])
    with pytest.raises(LabelError, match="rotated or has another spacing"):
        read_label(nifti(tmp_path, np.zeros(volume.shape, np.uint8), coarse), volume)
    finer = volume.affine_ras @ np.diag([1, 1, 1.05, 1])
    with pytest.raises(LabelError, match="shifted"):
        read_label(nifti(tmp_path, np.zeros(volume.shape, np.uint8), finer), volume)


def test_a_label_is_not_read_as_an_image(tmp_path, series):
    path = write(segmentation(series, [(1, 0, hs.blob(series)[0])]), tmp_path / "seg.dcm")
    with pytest.raises(ImageError, match="give it to read_label"):
        read(path)


def test_another_patients_label_is_refused_and_a_strange_frame_of_reference_flagged(tmp_path, series, volume):
    ds = segmentation(series, [(1, 0, hs.blob(series)[0])])
    assert read_label(write(ds, tmp_path / "seg.dcm"), volume).info.flags == ()
    ds.FrameOfReferenceUID = "1.2.3"
    assert read_label(write(ds, tmp_path / "seg.dcm"), volume).info.flags == ("other_frame_of_reference",)
    item = hs.Dataset()
    item.SeriesInstanceUID = "1.2.4"
    ds.ReferencedSeriesSequence = hs.Items([item])
    with pytest.raises(LabelError, match="drawn on another image"):
        read_label(write(ds, tmp_path / "seg.dcm"), volume)
    item.SeriesInstanceUID = series.uids["series"]
    assert read_label(write(ds, tmp_path / "seg.dcm"), volume).info.flags == ("other_frame_of_reference",)
    ds.PatientID = "SOMEBODY ELSE"
    with pytest.raises(LabelError, match="another patient") as refusal:
        read_label(write(ds, tmp_path / "seg.dcm"), volume)
    assert "ELSE" not in str(refusal.value)
    assert "marks" not in repr(volume.info)


@pytest.mark.slow
def test_a_large_and_nearly_empty_label_is_no_bomb(tmp_path):
    from medfed.data.volume import Volume

    shape, affine = (800, 600, 600), np.eye(4)
    values = np.zeros(shape, np.uint8)  # 288 MB, a thousandth of it in the file
    values[400, 300, 300] = 1
    nib.Nifti1Image(values, affine).to_filename(tmp_path / "a.nii.gz")
    like = Volume(np.broadcast_to(np.float32(0), (1, *shape)), affine)
    label = read_label(tmp_path / "a.nii.gz", like, classes=2)
    assert label.array[0, 400, 300, 300] == label.array.sum() == 1
    with pytest.raises(ImageError, match="would grow from"):
        read(tmp_path / "a.nii.gz")
