"""Real data in the folder MEDFED_REAL_DATA: the same results as nibabel, pydicom and highdicom."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medfed.data.read import read, read_label
from medfed.data.volume import Volume
from medfed.errors import ImageError, LabelError

DATA = Path(os.environ.get("MEDFED_REAL_DATA", "/nowhere"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        "MEDFED_REAL_DATA" not in os.environ, reason="MEDFED_REAL_DATA names no folder of real data"
    ),
]


def test_every_nifti_is_as_nibabel_reads_it():
    paths = sorted(DATA.glob("hippocampus/*/*.nii.gz"))[::9] + sorted(DATA.glob("spinal_cord_gm/**/*.nii.gz"))
    assert len(paths) > 50
    for path in paths:
        (volume,) = read(path)
        image = nib.load(path)
        np.testing.assert_array_equal(volume.array[0], image.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(volume.affine_ras, image.affine, atol=1e-4)


def test_every_mask_fits_its_image():
    for mask in sorted(DATA.glob("spinal_cord_gm/derivatives/labels/**/*manual.nii.gz")):
        subject, name = mask.parts[-3], mask.name.split("_T2starw")[0] + "_T2starw.nii.gz"
        (image,) = read(DATA / "spinal_cord_gm" / subject / "anat" / name)
        label = read_label(mask, image, classes=2)
        assert label.array.shape == image.array.shape


@pytest.mark.parametrize("number", range(1, 9))
def test_a_mosaic_is_the_volume_of_dcm2niix_in_every_encoding(number):
    (volume,) = read(DATA / "dicom_transfer_syntaxes" / "In" / f"{number}.dcm")
    theirs = nib.load(DATA / "dicom_transfer_syntaxes" / "Ref" / f"{number}.nii")
    # dcm2niix turns the rows round.
    np.testing.assert_array_equal(volume.array[0], np.asarray(theirs.dataobj)[:, ::-1])
    turn = np.diag([1.0, -1.0, 1.0, 1.0])
    turn[1, 3] = theirs.shape[1] - 1
    np.testing.assert_allclose(volume.affine_ras, theirs.affine @ turn, atol=1e-4)


@pytest.mark.parametrize("number", range(1, 10))
def test_an_image_decodes_to_the_same_pixels_in_every_encoding(number, tmp_path):
    path = DATA / "dicom_transfer_syntaxes" / "In" / f"{number}.dcm"
    ds = pydicom.dcmread(path)
    ds.ImageType = ["ORIGINAL", "PRIMARY"]  # the tiles as one plane, to see that they decode
    ds.remove_private_tags()
    if number == 3:
        pydicom.dcmwrite(tmp_path / "a.dcm", ds, implicit_vr=False, little_endian=False, force_encoding=True)
    else:
        ds.save_as(tmp_path / "a.dcm")
    (volume,) = read(tmp_path / "a.dcm")
    reference = pydicom.dcmread(DATA / "dicom_transfer_syntaxes" / "In" / "1.dcm")
    np.testing.assert_array_equal(volume.array[0, :, :, 0].T, reference.pixel_array)


def test_oblique_slices_of_different_studies_make_one_volume():
    (volume,) = read(DATA / "dicom_rtstruct" / "oriented_data")
    assert volume.array.shape == (1, 100, 50, 3)
    normal = np.cross(volume.affine_ras[:3, 0], volume.affine_ras[:3, 1])
    step = volume.affine_ras[:3, 2]
    assert abs(normal @ step) / np.linalg.norm(normal) / np.linalg.norm(step) == pytest.approx(1, abs=1e-5)
    assert volume.spacing_mm == pytest.approx((2.5, 3.5, 4.5), abs=1e-4)
    with pytest.raises(ImageError, match="neither SpacingBetweenSlices nor SliceThickness"):
        read(DATA / "dicom_rtstruct" / "one_slice_data")


def test_a_structure_set_lands_on_its_slices():
    folder = DATA / "dicom_rtstruct" / "mock_data"
    (volume,) = read(folder)
    label = read_label(folder / "rt.dcm", volume, classes=2)
    assert 0 < label.array.sum() < label.array.size / 2
    with pytest.raises(LabelError, match=r"beyond the image|between two slices|oblique"):
        read_label(folder / "invalid_reference_rt.dcm", volume)


def test_segmentations_land_where_highdicom_puts_them():
    import highdicom as hd

    for name in ("seg_image_ct_binary", "seg_image_ct_binary_fractional", "seg_image_ct_binary_overlap"):
        seg = hd.seg.segread(DATA / "dicom_seg" / f"{name}.dcm")
        theirs = seg.get_volume(combine_segments=False, rescale_fractional=True)
        affine = np.diag([-1, -1, 1, 1]) @ theirs.affine  # (slice, row, column, segment), LPS
        like = Volume(np.zeros((1, *theirs.array.shape[2::-1]), np.float32), affine[:, [2, 1, 0, 3]])
        label = read_label(DATA / "dicom_seg" / f"{name}.dcm", like)
        masks = theirs.array.transpose(3, 2, 1, 0) >= 0.5
        if len(masks) == 1 or not (masks.sum(axis=0) > 1).any():
            want = sum(mask * number for mask, number in zip(masks, seg.segment_numbers, strict=True))[None]
        else:
            want = np.stack([mask * number for mask, number in zip(masks, seg.segment_numbers, strict=True)])
        np.testing.assert_array_equal(label.array, want)
