"""A label or channel on another grid: moved exactly where it can be, on request otherwise, never beyond."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from medfed.data.case import Case
from medfed.data.case_reading import read_case, read_image
from medfed.data.class_names import ClassNames
from medfed.data.read import read, read_label
from medfed.data.settings import Images
from medfed.errors import ImageError, LabelError

from .itk_files import write_nrrd
from .nifti_files import write

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
AFFINE[:3, 3] = [-10, 5, 7]
IMAGE = np.random.default_rng(0).normal(size=(8, 9, 6)).astype(np.float32)
MASK = np.zeros((8, 9, 6), np.uint8)
MASK[2:5, 3:7, 1:4] = 1
KEYS = {"Segment0_Name": "Liver", "Segment0_LabelValue": "5", "Segment0_Layer": "0"}
NAMES = ClassNames(("background", "tumour", "liver"))


def image(folder: Path):
    return read(write(folder / "image.nii", IMAGE, AFFINE))[0]


def finer(array):
    """Return an array with each voxel as 2 x 2 x 2, and its affine: the same places in the patient."""
    affine = AFFINE.copy()
    affine[:3, :3] /= 2
    affine[:3, 3] = AFFINE[:3, 3] - AFFINE[:3, :3].diagonal() / 4
    return array.repeat(2, 0).repeat(2, 1).repeat(2, 2), affine


def test_a_finer_label_is_refused_or_takes_the_nearest_voxels(tmp_path):
    volume = image(tmp_path)
    path = write(tmp_path / "label.nii", *finer(MASK))
    with pytest.raises(LabelError, match=r"data\.resample_labels"):
        read_label(path, volume)
    label = read_label(path, volume, resample=True)
    # The centre of an image's voxel is the corner of eight of the label's, all of its value.
    np.testing.assert_array_equal(label.array[0], MASK)
    assert label.info.flags == ("resampled",)
    assert read_label(write(tmp_path / "same.nii", MASK, AFFINE), volume, resample=True).info.flags == ()


def test_a_rotated_label_is_as_its_voxels_lie(tmp_path):
    volume = image(tmp_path)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    label = read_label(write(tmp_path / "l.nii", MASK, AFFINE @ turn), volume, resample=True).array[0]
    for place in [(3, 4, 2), (2, 3, 1), (5, 5, 2), (0, 0, 0), (7, 8, 5)]:
        there = np.rint((np.linalg.inv(turn) @ [*place, 1])[:3]).astype(int)
        inside = (there >= 0).all() and (there < MASK.shape).all()
        assert label[place] == (MASK[tuple(there)] if inside else 0)


def test_outside_its_own_grid_a_label_is_background_and_outside_the_image_it_is_refused(tmp_path):
    volume = image(tmp_path)
    crop = AFFINE.copy()
    crop[:3, 3] = (AFFINE @ [2.3, 3, 1, 1])[:3]
    label = read_label(write(tmp_path / "l.nii", MASK[2:5, 3:7, 1:4], crop), volume, resample=True).array[0]
    np.testing.assert_array_equal(label, MASK)
    crop[:3, 3] = (AFFINE @ [20, 3, 1, 1])[:3]
    with pytest.raises(LabelError, match="100% of the label lie outside"):
        read_label(write(tmp_path / "l.nii", MASK[2:5, 3:7, 1:4], crop), volume, resample=True)


def cropped_seg(folder, start, keys=KEYS):
    crop = AFFINE.copy()
    crop[:3, 3] = (AFFINE @ [*start, 1])[:3]
    return write_nrrd(folder / "a.seg.nrrd", 5 * MASK[2:5, 3:7, 1:4], crop, keys=keys)


def test_a_seg_nrrd_is_put_back_and_its_segments_are_classes_by_name(tmp_path):
    volume = image(tmp_path)
    path = cropped_seg(tmp_path, (2, 3, 1))
    np.testing.assert_array_equal(read_label(path, volume, NAMES).array[0], 2 * MASK)
    np.testing.assert_array_equal(read_label(path, volume, names={"Liver": 1}).array[0], MASK)
    np.testing.assert_array_equal(read_label(path, volume).array[0], 5 * MASK)
    for start, match in (((2.4, 3, 1), "resample"), ((6, 3, 1), "outside the image")):
        with pytest.raises(LabelError, match=match):
            read_label(cropped_seg(tmp_path, start), volume, NAMES)
    label = read_label(cropped_seg(tmp_path, (2, 3, 1), KEYS | {"Segment0_Name": "Lung"}), volume, NAMES)
    assert label.array.max() == 0
    assert label.info.skipped == ("segment 5, which is no class",)


def test_layers_that_overlap_are_refused_with_the_key(tmp_path):
    volume = image(tmp_path)
    layers = np.stack([MASK, MASK])
    keys = {
        "Segment0_Name": "Liver",
        "Segment0_LabelValue": "1",
        "Segment0_Layer": "0",
        "Segment1_Name": "tumour",
        "Segment1_LabelValue": "1",
        "Segment1_Layer": "1",
    }
    path = write_nrrd(tmp_path / "a.seg.nrrd", layers, AFFINE, keys=keys)
    with pytest.raises(LabelError, match=r"data\.read\.overlap"):
        read_label(path, volume, NAMES, overlap="refuse")
    np.testing.assert_array_equal(read_label(path, volume, NAMES, overlap="later").array[0], 2 * MASK)


def settings(**change) -> Images:
    return msgspec.convert({"kind": "images", "channels": 2, **change}, Images)


def test_channels_on_other_grids_are_refused_or_interpolated(tmp_path):
    write(tmp_path / "one.nii", IMAGE, AFFINE)
    path = write(tmp_path / "two.nii", *finer(IMAGE))
    paths = (tmp_path / "one.nii", path)
    with pytest.raises(ImageError, match=r"data\.resample_channels"):
        read_image(paths, settings())
    volume = read_image(paths, settings(resample_channels=True))
    # Trilinear between eight voxels of one value.
    np.testing.assert_allclose(volume.array[1], IMAGE, atol=1e-5)
    assert "resampled_channels" in volume.info.flags
    shifted = AFFINE.copy()
    shifted[:3, 3] = (AFFINE @ [4, 0, 0, 1])[:3]
    write(tmp_path / "two.nii", IMAGE, shifted)
    with pytest.raises(ImageError, match="channel 2 covers 50% of channel 1"):
        read_image(paths, settings(resample_channels=True))


def test_a_case_is_read_as_the_study_says(tmp_path):
    write(tmp_path / "one.nii", IMAGE, AFFINE)
    label = write(tmp_path / "label.nii", *finer(MASK))
    case = Case("c", "p", "token", (tmp_path / "one.nii",), label)
    with pytest.raises(LabelError, match=r"case token: .*data\.resample_labels"):
        read_case(case, settings(channels=1), 2)
    result = read_case(case, settings(channels=1, resample_labels=True), 2)[1]
    assert result is not None
    np.testing.assert_array_equal(result.array[0], MASK)
    with pytest.raises(ImageError, match=r"case token: .*data\.read\.max_bytes"):
        read_case(case, settings(channels=1, read={"max_bytes": 1000}), 2)


def test_a_hospital_is_told_how_many_were_moved(tmp_path):
    from medfed.data.datamodule import SiteDataModule
    from medfed.data.index import index_folder

    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(3):
        write(tmp_path / "images" / f"c{number}.nii", IMAGE, AFFINE)
        mask = finer(MASK) if number else (MASK, AFFINE)
        write(tmp_path / "labels" / f"c{number}.nii", *mask)
    index = index_folder(tmp_path, site_secret=b"x" * 32)
    for cache in ("memory", "none"):
        chosen = settings(channels=1, resample_labels=True, cache=cache)
        data = SiteDataModule(index, chosen, "segment", classes=2)
        for prepare in (True, False):
            data.notes = ()
            data.screen(prepare=prepare)
            assert data.notes == ("2 of 3 cases: label resampled from another grid onto the image",)
