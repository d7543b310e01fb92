"""Slices of one volume: order, spacing and affine, and frames that are skipped or refused."""

from __future__ import annotations

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, assert_in_place, expected_affine, write, write_series

from medfed.data.read import read
from medfed.errors import ImageError


def rotation(a: float, b: float, c: float) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", [a, b, c], degrees=True).as_matrix()


OBLIQUE = tuple(np.concatenate(rotation(20, -15, 33).T[:2]).round(6))


@pytest.mark.parametrize("orientation", [hs.AXIAL, hs.CORONAL, hs.SAGITTAL, OBLIQUE], ids=str)
@pytest.mark.parametrize("step", [2.5, 0.7])
def test_every_voxel_lies_where_its_position_says(tmp_path, orientation, step):
    series = Series(orientation=orientation, step_mm=step)
    order = np.random.default_rng(1).permutation(series.shape[0])
    write_series(tmp_path, series, order=order)
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 5, 6))
    np.testing.assert_allclose(volume.affine_ras, expected_affine(series), atol=2e-5)
    assert volume.info.modality == "CT"
    assert volume.info.skipped == ()


def test_instance_numbers_are_not_believed(tmp_path):
    def edit(ds, k):
        ds.InstanceNumber = (k * 7 + 3) % 6
        if k == 4:
            del ds.InstanceNumber

    write_series(tmp_path, Series(), edit)
    assert_in_place(read(tmp_path)[0])


def test_jitter_of_4_micrometres_is_even(tmp_path):
    jitter = np.random.default_rng(0).uniform(-0.004, 0.004, (6, 3))

    def edit(ds, k):
        ds.ImagePositionPatient = [f"{v:.6f}" for v in Series().position(k) + jitter[k]]

    write_series(tmp_path, Series(), edit)
    (volume,) = read(tmp_path)
    np.testing.assert_allclose(volume.affine_ras, expected_affine(Series()), atol=0.009)


def test_a_missing_slice_is_refused_with_its_place(tmp_path):
    write_series(tmp_path, Series(), order=[0, 1, 2, 4, 5])
    with pytest.raises(
        ImageError, match=r"1 slice is missing: .*2\.50 mm apart, but 5\.00 mm from 5\.00 to 10\.00"
    ):
        read(tmp_path)


@pytest.mark.parametrize("uneven", ["refuse", "resample"])
def test_a_slice_beside_the_line_is_refused_whatever_is_asked(tmp_path, uneven):
    def edit(ds, k):
        ds.ImagePositionPatient = [-10 + 0.4 * (k == 3), *map(float, ds.ImagePositionPatient[1:])]

    write_series(tmp_path, Series(), edit)
    with pytest.raises(ImageError, match=r"one is 0\.40 mm off it, with 6 slices 2\.50 mm apart"):
        read(tmp_path, uneven=uneven)


def test_what_is_no_part_of_the_volume_gets_a_line_each(tmp_path):
    series = Series()
    write_series(tmp_path, series)
    scout = hs.make_slice(Series(orientation=hs.CORONAL, shape=(1, 9, 9), uids=series.uids), 0)
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write(scout, tmp_path / "scout.dcm")
    stray = hs.make_slice(Series(orientation=hs.SAGITTAL, shape=(1, 9, 9), uids=series.uids), 0)
    write(stray, tmp_path / "stray.dcm")
    scout.FrameOfReferenceUID = "1.2.3"  # a scout before the patient was moved
    write(scout, tmp_path / "scout2.dcm")
    for name, uid, modality in [
        ("sr", "1.2.840.10008.5.1.4.1.1.88.22", "SR"),
        ("pr", "1.2.840.10008.5.1.4.1.1.11.1", "PR"),
        ("ko", "1.2.840.10008.5.1.4.1.1.88.59", "KO"),
    ]:
        ds = hs.make_slice(series, 0)
        ds.SOPClassUID, ds.Modality = uid, modality
        del ds.PixelData
        write(ds, tmp_path / f"{name}.dcm")
    capture = hs.make_slice(series, 0)
    capture.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    write(capture, tmp_path / "sc.dcm")
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "junk.dcm").write_bytes(np.random.default_rng(0).bytes(999))
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 5, 6))
    words = (
        "localizer",
        "orientation",
        "structured report",
        "presentation",
        "key object",
        "secondary",
        "no format",
    )
    for word in words:
        assert any(word in line for line in volume.info.skipped), word
    assert len(volume.info.skipped) == 9
    assert not any("CANARY" in line or str(tmp_path) in line for line in volume.info.skipped)


def test_one_slice_is_one_file_and_needs_its_thickness(tmp_path):
    paths = write_series(tmp_path, Series())
    (volume,) = read(paths[2])  # never the files beside it
    assert volume.array.shape == (1, 7, 5, 1)
    assert volume.spacing_mm[2] == 99
    assert_in_place(volume)
    ds = hs.make_slice(Series(), 0)
    del ds.SliceThickness
    with pytest.raises(ImageError, match="neither SpacingBetweenSlices nor SliceThickness"):
        read(write(ds, tmp_path / "one.dcm"))


def test_steps_that_drift_are_uneven(tmp_path):
    places = [0.0, 1.0, 2.008, 3.024, 4.048, 5.08, 6.12]  # each step 0.008 mm longer than the one before

    def edit(ds, k):
        ds.ImagePositionPatient = [-10, -20, 30 + places[k]]

    write_series(tmp_path, Series(shape=(7, 5, 7)), edit)
    with pytest.raises(ImageError, match=r"uneven: 7 slices are usually 1\.02 mm apart, but"):
        read(tmp_path)


def test_a_localizer_alone_is_no_volume(tmp_path):
    write_series(
        tmp_path, Series(), lambda ds, k: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])
    )
    with pytest.raises(ImageError, match="no volume, only 6 other files, the first a localizer"):
        read(tmp_path)
    with pytest.raises(ImageError, match="no volume, only a localizer of 5 x 7 pixels"):
        read(next(tmp_path.iterdir()))


def test_slices_that_slide_more_than_they_rise_are_refused(tmp_path):
    write_series(tmp_path, Series(shift_mm=(6.0, 0.0, 0.0)))
    with pytest.raises(ImageError, match=r"shift 6\.00 mm sideways per 2\.50 mm"):
        read(tmp_path)


@pytest.mark.parametrize("k_turned, degrees", [(2, 0.02), (5, 0.02), (5, 0.5)])
def test_a_slice_turned_a_little_is_refused_and_not_taken_for_a_localizer(tmp_path, k_turned, degrees):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))

    def edit(ds, k):
        if k == k_turned:
            ds.ImageOrientationPatient = [f"{v:.6f}" for v in (cosine, sine, 0, -sine, cosine, 0)]

    write_series(tmp_path, Series(), edit)
    # The opposite corner moves by the chord of the rotation: 2 sin(half the angle) times the diagonal of 5
    # rows and 7 columns.
    chord_mm = 2 * np.sin(np.radians(degrees) / 2) * np.hypot(5 * 1.5, 7 * 0.75)
    said = rf"rotated by {degrees:.2f}\d* degrees against .* its corner by {chord_mm:.3f} mm"
    with pytest.raises(ImageError, match=said):
        read(tmp_path)


@pytest.mark.parametrize("units", [1, 2])
def test_an_orientation_that_differs_in_its_fourth_decimal_is_one(tmp_path, units):
    def edit(ds, k):
        last = units * 1e-4 * (k % 2)
        ds.ImageOrientationPatient = [f"{v:.4f}" for v in (1, last, 0, -last, 1, 0)]

    write_series(tmp_path, Series(), edit)
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 5, 6))


def test_a_small_turn_of_a_large_slice_is_refused(tmp_path):
    # 0.0002 over 256 rows of 1.5 mm and 256 columns of 1 mm: 0.0002 x hypot(384, 256) = 0.09 mm, under a
    # fifth of 1 mm; over 1024 of each, 0.369 mm, it is more.
    def edit(ds, k):
        ds.ImageOrientationPatient = [1, 2e-4 * (k == 2), 0, -2e-4 * (k == 2), 1, 0]

    for side in (256, 1024):
        write_series(tmp_path / str(side), Series(shape=(4, side, side), spacing_mm=(1.5, 1.0)), edit)
    assert len(read(tmp_path / "256")) == 1
    with pytest.raises(ImageError, match=r"rotated by 0\.011 degrees .* its corner by 0\.369 mm"):
        read(tmp_path / "1024")


def test_a_last_slice_nearer_than_the_others_is_named(tmp_path):
    series = Series(shape=(6, 5, 7))

    def edit(ds, k):
        if k == 5:  # half a step after the fifth, which is at 10 mm
            ds.ImagePositionPatient = [f"{v:.3f}" for v in series.position(4) + 1.25 * series.normal]

    write_series(tmp_path, series, edit)
    said = r"uneven: 6 slices are usually 2\.50 mm apart, but 1\.25 mm from 10\.00 to 11\.25 mm"
    with pytest.raises(ImageError, match=said):
        read(tmp_path)


def test_a_saved_screen_among_the_slices_gets_a_line(tmp_path):
    series = Series()
    write_series(tmp_path, series)
    ds = hs.make_slice(series, 0)
    ds.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, word)
    write(ds, tmp_path / "saved.dcm")
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 5, 6))
    assert "secondary image" in volume.info.skipped[0]


def test_of_three_slices_two_with_a_gap_one_is_missing(tmp_path):
    write_series(tmp_path, Series(), order=(0, 1, 3))
    with pytest.raises(
        ImageError, match=r"1 slice is missing: 3 slices are usually 2\.50 mm apart, but 5\.00 mm"
    ):
        read(tmp_path)
