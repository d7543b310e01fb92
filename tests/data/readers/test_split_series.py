"""What one series UID may hold: cines, weightings, reconstructions, writers' inventions (point 9,
and 6 to 8).
"""

from __future__ import annotations

import os

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, assert_in_place, write, write_series
from pydicom.uid import generate_uid

from medfed.data.read import read
from medfed.errors import ImageError


def several(folder, series, edits):
    """Write the series once per edit; the n-th has values 1000 n larger."""
    for n, change in enumerate(edits):

        def edit(ds, k, n=n, change=change):
            change(ds, k)
            hs.put_pixels(ds, series.stored(k, intercept=series.intercept - 1000 * n))

        write_series(folder, series, edit)


def offsets(volumes):
    """Return the difference of each volume from the first, which must be the same for all voxels."""
    found = []
    for volume in volumes:
        difference = volume.array - volumes[0].array
        assert np.ptp(difference) < 1, "a volume mixes slices of several"
        found.append(round(float(difference.mean())))
    return found


@pytest.mark.parametrize(
    "time_ms",
    [
        lambda phase, k: 300.5 * phase + 11 * k,  # phases that drift from slice to slice
        lambda phase, k: 30.5 * phase + 40 * k,  # one slice through all its phases after the other
        lambda phase, k: [90, 1000, 20000][phase] + k * [10, 100, 1000][phase],  # as texts in another order
    ],
)
def test_a_cine_comes_apart_by_its_trigger_times(tmp_path, time_ms):
    series = Series(modality="MR")
    edits = [
        lambda ds, k, phase=phase: setattr(ds, "TriggerTime", f"{time_ms(phase, k):.1f}")
        for phase in range(3)
    ]
    several(tmp_path, series, edits)
    volumes = read(tmp_path)
    assert_in_place(volumes[0], shape=(7, 5, 6))
    assert offsets(volumes) == [0, 1000, 2000]


def test_two_elements_tell_four_volumes_apart(tmp_path):
    def change(ds, acquisition, inversion):
        ds.AcquisitionNumber, ds.InversionTime = acquisition, inversion

    edits = [lambda ds, k, a=a, i=i: change(ds, a, i) for a in (1, 2) for i in (100, 200)]
    several(tmp_path, Series(modality="MR"), edits)
    assert offsets(read(tmp_path)) == [0, 1000, 2000, 3000]


def _philips(ds, b):
    ds.add_new(0x20010010, "LO", "Philips Imaging DD 001")
    ds.add_new(0x20011003, "FL", float(b))


def _ge(ds, b):
    ds.add_new(0x00430010, "LO", "GEMS_PARM_01")
    ds.add_new(0x00431039, "IS", [b, 8, 0, 0])


def _siemens(ds, b):
    ds.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    ds.add_new(0x0019100C, "IS", b)


@pytest.mark.parametrize("maker", [_philips, _ge, _siemens])
def test_b_values_in_private_elements(tmp_path, maker):
    several(tmp_path, Series(modality="MR"), [lambda ds, k, b=b: maker(ds, b) for b in (0, 500, 1000)])
    assert offsets(read(tmp_path)) == [0, 1000, 2000]


def test_directions_of_one_weighting_come_apart(tmp_path):
    def change(ds, b, direction):
        ds.DiffusionBValue = b
        if direction:
            ds.DiffusionGradientOrientation = direction

    weightings = [
        (0.0, None),
        (1000.0, [0.0, 0.0, 1.0]),
        (1000.0, [1.0, 0.0, 0.0]),
        (2000.0, [1.0, 0.0, 0.0]),
    ]
    several(tmp_path, Series(modality="MR"), [lambda ds, k, w=w: change(ds, *w) for w in weightings])
    assert sorted(offsets(read(tmp_path))) == [0, 1000, 2000, 3000]


@pytest.mark.parametrize(
    "invent",
    [
        lambda ds, k: setattr(ds, "FrameOfReferenceUID", generate_uid()),
        lambda ds, k: setattr(ds, "TemporalPositionIdentifier", k + 1),
        lambda ds, k: setattr(ds, "EchoTime", f"{4.6 + 0.002 * k:.4f}"),
        lambda ds, k: k % 2 or delattr(ds, "FrameOfReferenceUID"),
        lambda ds, k: k > 2 or delattr(ds, "PatientBirthDate"),
    ],
)
def test_an_element_that_differs_in_every_slice_or_is_lost_in_some_separates_nothing(tmp_path, invent):
    write_series(tmp_path, Series(modality="MR"), lambda ds, k: invent(ds, k) and None)
    volumes = read(tmp_path)
    assert len(volumes) == 1
    assert_in_place(volumes[0], shape=(7, 5, 6))


def test_two_patients_stay_apart_though_one_lacks_a_birth_date(tmp_path):
    series = Series()
    write_series(tmp_path, series)

    def other(ds, k):
        ds.PatientID = "B"
        del ds.PatientBirthDate

    write_series(tmp_path, series, other)
    volumes = read(tmp_path)
    assert len(volumes) == 2
    for volume in volumes:
        assert_in_place(volume, shape=(7, 5, 6))


def test_a_thick_and_a_thin_reconstruction_come_apart(tmp_path):
    series = Series(shape=(9, 5, 7), step_mm=1.0)
    write_series(tmp_path, series, lambda ds, k: setattr(ds, "SliceThickness", 1.0))
    write_series(tmp_path, series, lambda ds, k: setattr(ds, "SliceThickness", 4.0), order=(0, 4, 8))
    for k, path in zip((0, 4, 8), sorted(tmp_path.iterdir())[-3:], strict=True):
        ds = hs.make_slice(series, k)
        ds.SliceThickness = 4.0
        hs.put_pixels(ds, series.stored(k) + 2)
        write(ds, path)
    thin, thick = sorted(read(tmp_path), key=lambda volume: volume.spacing_mm[2])
    assert_in_place(thin, shape=(7, 5, 9))
    assert thick.shape == (7, 5, 3)
    assert thick.spacing_mm[2] == pytest.approx(4)
    np.testing.assert_allclose(thick.array[0], thin.array[0][:, :, ::4] + 1, atol=1e-3)


@pytest.mark.parametrize("offset_mm", [1.0, 1.25])
def test_acquisitions_whose_slices_interleave_come_apart(tmp_path, offset_mm):
    series = Series()
    write_series(tmp_path, series, lambda ds, k: setattr(ds, "ConvolutionKernel", "B30f"))
    other = Series(uids=series.uids, origin_mm=(-10.0, -20.0, 30.0 + offset_mm))
    write_series(tmp_path, other, lambda ds, k: setattr(ds, "ConvolutionKernel", "B70f"))
    volumes = read(tmp_path)
    assert len(volumes) == 2
    for volume in volumes:
        assert_in_place(volume, shape=(7, 5, 6))


def test_a_gap_between_two_acquisitions_is_a_gap(tmp_path):
    write_series(
        tmp_path,
        Series(shape=(7, 5, 7)),
        lambda ds, k: setattr(ds, "AcquisitionNumber", 1 + (k > 3)),
        order=(0, 1, 2, 4, 5, 6),
    )
    with pytest.raises(ImageError, match="1 slice is missing"):
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


def test_a_time_point_that_lacks_a_slice_is_named(tmp_path):
    """Three times of six slices, told apart by their time; of the second the fourth slice, at 30 +
    7.5 mm, is lost.
    """
    series = Series(modality="MR")
    for time in range(3):

        def edit(ds, k, time=time):
            ds.AcquisitionTime = f"10{time:02d}00"
            hs.put_pixels(ds, series.stored(k) + 100 * time)

        write_series(tmp_path / str(time), series, edit, order=[k for k in range(6) if (time, k) != (1, 3)])
    said = r"3 images at each position, but fewer at 1 of the 6, the first 37\.50 mm .* lacks slices"
    with pytest.raises(ImageError, match=said):
        read(tmp_path)


def test_a_last_slice_nearer_than_the_others_is_named(tmp_path):
    series = Series(shape=(6, 5, 7))

    def edit(ds, k):
        if k == 5:  # half a step after the fifth, which is at 10 mm
            ds.ImagePositionPatient = [f"{v:.3f}" for v in series.position(4) + 1.25 * series.normal]

    write_series(tmp_path, series, edit)
    said = r"uneven: 6 slices are usually 2\.50 mm apart, but 1\.25 mm from 10\.00 to 11\.25 mm"
    with pytest.raises(ImageError, match=said):
        read(tmp_path)


def test_a_makers_object_without_an_image_gets_a_line(tmp_path):
    series = Series()
    write_series(tmp_path, series)
    ds = hs.make_slice(series, 0)
    for element in [e.keyword for e in ds if e.tag.group in (0x0028, 0x7FE0)]:
        delattr(ds, element)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.9.1"
    write(ds, tmp_path / "protocol.dcm")
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 5, 6))
    assert volume.info.skipped == ("an object without an image",)


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


def test_links_to_folders_are_followed_once(tmp_path):
    series = Series()
    write_series(tmp_path / "in", series, order=(0, 1, 2))
    write_series(tmp_path / "elsewhere", series, order=(3, 4, 5))
    os.symlink(tmp_path / "elsewhere", tmp_path / "in" / "more")
    os.symlink(tmp_path / "in", tmp_path / "in" / "loop")
    (volume,) = read(tmp_path / "in")
    assert_in_place(volume, shape=(7, 5, 6))


def test_pixel_data_with_a_few_zeros_too_many(tmp_path):
    write_series(tmp_path, Series(), lambda ds, k: setattr(ds, "PixelData", ds.PixelData + b"\0\0\0\0"))
    assert_in_place(read(tmp_path)[0], shape=(7, 5, 6))
    write_series(tmp_path / "b", Series(), lambda ds, k: setattr(ds, "PixelData", ds.PixelData + b"\0\0\1\0"))
    with pytest.raises(ImageError, match="pixel data hold 74 bytes"):
        read(tmp_path / "b")


def test_an_object_in_parts_is_one_volume(tmp_path):
    series = Series(modality="MR")
    for number, ks in enumerate(((0, 3, 4), (5, 1, 2)), start=1):
        ds = hs.enhanced(series, [{"k": k} for k in ks])
        ds.ConcatenationUID, ds.InConcatenationNumber = "1.2.3", number
        write(ds, tmp_path / f"{number}.dcm")
    volumes = read(tmp_path)
    assert len(volumes) == 1
    assert_in_place(volumes[0], shape=(7, 5, 6))


@pytest.mark.parametrize(
    "orientation", [hs.AXIAL, (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0), hs.CORONAL, hs.SAGITTAL], ids=str
)
@pytest.mark.parametrize("slide_mm", [(0.0, 0.9), (0.0, -0.9), (0.7, 0.0), (-0.3, 0.4)], ids=str)
def test_tilts_to_either_side_of_any_plane(tmp_path, orientation, slide_mm):
    directions = np.reshape(orientation, (2, 3))
    series = Series(shape=(5, 6, 7), orientation=orientation, shift_mm=np.asarray(slide_mm) @ directions)
    write_series(tmp_path, series, order=(3, 0, 4, 2, 1))
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 6, 5))
    np.testing.assert_allclose(volume.affine_ras, hs.expected_affine(series), atol=1e-5)
    correct_gantry_tilt = read(tmp_path, tilt="resample")[0].affine_ras[:3, :3]
    np.testing.assert_allclose(correct_gantry_tilt[:, 2] @ correct_gantry_tilt[:, :2], 0, atol=1e-6)


def test_of_three_slices_two_with_a_gap_one_is_missing(tmp_path):
    write_series(tmp_path, Series(), order=(0, 1, 3))
    with pytest.raises(
        ImageError, match=r"1 slice is missing: 3 slices are usually 2\.50 mm apart, but 5\.00 mm"
    ):
        read(tmp_path)
