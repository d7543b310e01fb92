"""Single-frame series: order, spacing, affine, and what is skipped or refused."""

from __future__ import annotations

import warnings

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, assert_in_place, expected_affine, write, write_series

from medfed.data.read import read
from medfed.errors import ImageError

TILTED = (0.9, 0.43588989, 0.0, -0.3, 0.61942, -0.725)


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


def test_a_tilted_gantry_gets_its_sheared_affine_or_is_resampled_or_refused(tmp_path):
    series = Series(shape=(8, 12, 7), shift_mm=(0.0, 0.9, 0.0))
    write_series(tmp_path, series)
    (sheared,) = read(tmp_path)
    assert_in_place(sheared)
    np.testing.assert_allclose(sheared.affine_ras, expected_affine(series), atol=1e-5)
    assert "tilt" in sheared.info.flags
    with pytest.raises(ImageError, match=r"tilted: slices are offset by 19\.8 degrees"):  # atan(0.9 / 2.5)
        read(tmp_path, tilt="refuse")
    (untilted,) = read(tmp_path, tilt="resample")
    columns = untilted.affine_ras[:3, :3]
    assert abs(columns[:, 2] @ columns[:, 1]) < 1e-9
    want = hs.expected(untilted.affine_ras, untilted.array.shape[1:])
    # Between voxels a linear function is interpolated exactly. Outside the slices, and where they cover half
    # a pixel, there is air or NaN, and no mixture.
    off = np.abs(untilted.array[0] - want)
    for k in range(8):
        first = int(np.ceil(0.9 * k / 1.5))
        assert off[:, first : first + 11, k].max() < 0.3
    assert untilted.array.shape[2] == 12 + 5  # 7 x 0.9 mm in pixels of 1.5 mm is 4.2
    assert ((off < 0.3) | (untilted.array[0] == -1000)).all()
    (blank,) = read(tmp_path, tilt="resample", padding="nan")
    np.testing.assert_array_equal(np.isnan(blank.array), untilted.array == -1000)
    assert "nan" in blank.info.flags


def test_a_missing_slice_is_refused_with_its_place(tmp_path):
    write_series(tmp_path, Series(), order=[0, 1, 2, 4, 5])
    with pytest.raises(
        ImageError, match=r"1 slice is missing: .*2\.50 mm apart, but 5\.00 mm from 5\.00 to 10\.00"
    ):
        read(tmp_path)


def test_uneven_slices_are_refused_or_resampled(tmp_path):
    places = [0, 2.5, 5, 7.1, 10, 12.5]

    def edit(ds, k):
        ds.ImagePositionPatient = [-10, -20, 30 + places[k]]
        off = (places[k] - 2.5 * k) * hs.WEIGHTS[2] / 0.5
        hs.put_pixels(ds, Series().stored(k) + round(off))

    write_series(tmp_path, Series(), edit)
    with pytest.raises(ImageError, match=r"uneven: .*2\.10 mm from 5\.00 to 7\.10"):
        read(tmp_path)
    (volume,) = read(tmp_path, uneven="resample")
    assert "resampled" in volume.info.flags
    assert_in_place(volume, slope=1.0)  # a linear function survives linear interpolation
    assert volume.spacing_mm[2] == pytest.approx(2.5)


@pytest.mark.parametrize("uneven", ["refuse", "resample"])
def test_a_slice_beside_the_line_is_refused_whatever_is_asked(tmp_path, uneven):
    def edit(ds, k):
        ds.ImagePositionPatient = [-10 + 0.4 * (k == 3), *map(float, ds.ImagePositionPatient[1:])]

    write_series(tmp_path, Series(), edit)
    with pytest.raises(ImageError, match=r"one is 0\.40 mm off it, with 6 slices 2\.50 mm apart"):
        read(tmp_path, uneven=uneven)


def test_copies_are_dropped_with_a_line_and_conflicts_refused(tmp_path):
    paths = write_series(tmp_path, Series())
    (tmp_path / "copy.dcm").write_bytes(paths[2].read_bytes())
    other = hs.make_slice(Series(uids=_uids(paths[0])), 3)  # another instance of the same image
    write(other, tmp_path / "again.dcm")
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 5, 6))
    assert sum("copy" in line for line in volume.info.skipped) == 2
    hs.put_pixels(other, hs.Series().stored(2))
    write(other, tmp_path / "again.dcm")
    with pytest.raises(ImageError, match=r"2 different images at one position \(37\.50 mm"):
        read(tmp_path)


def _uids(path):
    import pydicom

    ds = pydicom.dcmread(path)
    return {"study": ds.StudyInstanceUID, "series": ds.SeriesInstanceUID, "frame": ds.FrameOfReferenceUID}


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
        "neither",
    )
    for word in words:
        assert any(word in line for line in volume.info.skipped), word
    assert len(volume.info.skipped) == 9
    assert not any("CANARY" in line or str(tmp_path) in line for line in volume.info.skipped)


@pytest.mark.parametrize(
    "element, values",
    [
        ("PatientID", ["A", "B"]),
        ("EchoTime", ["4.6", "9.2"]),
        ("TemporalPositionIdentifier", ["1", "2"]),
        ("DiffusionBValue", [0.0, 1000.0]),
        ("AcquisitionNumber", ["1", "2"]),
        ("InversionTime", ["100", "200"]),
        ("AcquisitionTime", ["101500.0", "101600.0"]),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]),
    ],
)
def test_volumes_that_share_a_series_are_told_apart(tmp_path, element, values):
    series = Series(modality="MR")
    for n, value in enumerate(values):

        def edit(ds, k, n=n, value=value):
            setattr(ds, element, value)
            hs.put_pixels(ds, series.stored(k, intercept=series.intercept - 1000 * n))

        write_series(tmp_path, series, edit)
    volumes = read(tmp_path)
    assert len(volumes) == 2
    assert_in_place(volumes[0])
    np.testing.assert_allclose(volumes[1].array - volumes[0].array, 1000, atol=0.5)


def test_time_points_are_told_apart_by_times_that_differ_from_slice_to_slice(tmp_path):
    series = Series()
    for n in range(2):

        def edit(ds, k, n=n):
            ds.ContentTime = f"1200{n * 30 + k:02d}.0"
            hs.put_pixels(ds, series.stored(k, intercept=series.intercept - 1000 * n))

        write_series(tmp_path, series, edit)
    volumes = read(tmp_path)
    assert len(volumes) == 2
    np.testing.assert_allclose(volumes[1].array - volumes[0].array, 1000, atol=0.5)


def test_slope_and_intercept_are_each_slices_own(tmp_path):
    series = Series(modality="PT")

    def edit(ds, k):
        ds.RescaleSlope, ds.RescaleIntercept = f"{0.1 + 0.05 * k:.2f}", f"{-k}"
        hs.put_pixels(ds, series.stored(k, 0.1 + 0.05 * k, -k))

    write_series(tmp_path, series, edit)
    assert_in_place(read(tmp_path)[0])


def test_a_modality_lut_is_applied(tmp_path):
    def edit(ds, k):
        del ds.RescaleSlope, ds.RescaleIntercept
        lut = hs.Dataset()
        lut.LUTDescriptor, lut.LUTData, lut.ModalityLUTType = [4, 10, 16], [5, 50, 500, 5000], "US"
        lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
        ds.ModalityLUTSequence = hs.Items([lut])
        hs.put_pixels(ds, np.array([[0, 10, 11], [12, 13, 99]]), signed=False)

    write_series(tmp_path, Series(), edit)
    (volume,) = read(tmp_path)
    np.testing.assert_array_equal(volume.array[0, :, :, 0].T, [[5, 5, 50], [500, 5000, 5000]])


def _raw(ds, tag, value):
    """Write a value that pydicom would refuse."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    ds._dict[Tag(tag)] = RawDataElement(Tag(tag), "DS", len(value), value, 0, False, True, True)


def _no_slope_on_slice_2(ds, k):
    if k == 2:
        del ds.RescaleSlope, ds.RescaleIntercept


@pytest.mark.parametrize(
    "edit, match",
    [
        (lambda ds, k: setattr(ds, "RescaleSlope", 0), "RescaleSlope .* is 0"),
        (lambda ds, k: _raw(ds, 0x00281053, b"1,0 "), "RescaleSlope .* not a decimal number"),
        (lambda ds, k: _raw(ds, 0x00281053, b"nan "), "RescaleSlope .* not a decimal number"),
        (lambda ds, k: _raw(ds, 0x00281053, b"1\\2 "), "RescaleSlope .* 2 values"),
        (_no_slope_on_slice_2, "that others lack"),
        (lambda ds, k: delattr(ds, "ImagePositionPatient"), "lack ImagePositionPatient"),
        (lambda ds, k: delattr(ds, "ImageOrientationPatient"), "lack ImagePosition"),
        (lambda ds, k: delattr(ds, "PixelSpacing"), "lacks PixelSpacing"),
        (lambda ds, k: setattr(ds, "PixelSpacing", [0, 1]), "PixelSpacing .* is 0 x 1 mm"),
        (
            lambda ds, k: setattr(ds, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
            "not a pair of perpendicular",
        ),
        (
            lambda ds, k: setattr(ds, "ImageOrientationPatient", [0.5, 0, 0, 0, 1, 0]),
            "not a pair of perpendicular",
        ),
        (
            lambda ds, k: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]),
            "Siemens mosaic",
        ),
        (lambda ds, k: k < 3 and hs.put_pixels(ds, np.zeros((9, 9), int)), "mixes images of 5 x 7 and 9 x 9"),
        (
            lambda ds, k: setattr(ds, "PixelSpacing", [1.5, 0.75 + k // 3]),
            "mixes pixel spacings from 1.5 x 0.75",
        ),
        (lambda ds, k: delattr(ds, "PixelData"), "without pixel data"),
        (lambda ds, k: setattr(ds, "Rows", 4), "pixel data hold 70 bytes, 1 frames of 4 x 7 .* need 56"),
        (lambda ds, k: setattr(ds, "Rows", 6), "pixel data hold 70 bytes, 1 frames of 6 x 7 .* need 84"),
        (lambda ds, k: setattr(ds, "NumberOfFrames", 2), "2 frames without positions"),
        (lambda ds, k: setattr(ds, "BitsStored", 17), "17 bits stored"),
        (lambda ds, k: setattr(ds, "HighBit", 3), "bits stored up to bit 3"),
    ],
)
def test_what_could_be_read_wrongly_is_refused(tmp_path, edit, match):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(tmp_path, Series(), lambda ds, k: edit(ds, k) or None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=match) as refusal:
            read(tmp_path)
    assert "CANARY" not in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)
    assert refusal.value.__context__ is None


def test_signed_12_bits_with_junk_above_them(tmp_path):
    series = Series(slope=2.0, intercept=500.0)
    assert series.stored(0).min() < 0 < series.stored(5).max()

    def edit(ds, k):
        junk = np.random.default_rng(k).integers(0, 16, series.shape[1:])
        hs.put_pixels(
            ds, (series.stored(k) & 0xFFF | junk << 12).astype(np.uint16).view(np.int16).astype(int)
        )
        ds.BitsStored, ds.HighBit = 12, 11

    write_series(tmp_path, series, edit)
    assert_in_place(read(tmp_path)[0], slope=2)


def test_bits_below_the_stored_ones(tmp_path):
    series = Series(slope=2.0, intercept=0.0)

    def edit(ds, k):
        hs.put_pixels(ds, series.stored(k) * 16 + 7)
        ds.BitsStored, ds.HighBit = 12, 15

    write_series(tmp_path, series, edit)
    assert_in_place(read(tmp_path)[0], slope=2)


@pytest.mark.parametrize(
    "series",
    [
        Series(slope=0.012, intercept=-100.0, signed=False),  # stored values from 41000 on
        Series(slope=0.001, intercept=0.0, allocated=32),
        Series(slope=0.0001, intercept=0.0, allocated=32, signed=False),
        Series(slope=4.0, intercept=0.0, allocated=8, signed=False),
        Series(slope=4.0, intercept=500.0, allocated=8),
    ],
)
def test_8_16_and_32_bits(tmp_path, series):
    write_series(tmp_path, series)
    assert_in_place(read(tmp_path)[0], slope=series.slope)


@pytest.mark.parametrize("padding, want", [("air", -1000.0), ("nan", np.nan)])
@pytest.mark.parametrize("coded", ["SS", "US"])
def test_padding_becomes_air_or_nan(tmp_path, padding, want, coded):
    series = Series()

    def edit(ds, k):
        stored = series.stored(k)
        stored[0, :3] = -2000
        hs.put_pixels(ds, stored)
        ds.add_new(0x00280120, coded, -2000 if coded == "SS" else 63536)

    write_series(tmp_path, series, edit)
    (volume,) = read(tmp_path, padding=padding)
    np.testing.assert_array_equal(volume.array[0, :3, 0], np.full((3, 6), want, np.float32))
    assert np.nanmin(np.delete(volume.array[0], 0, axis=1)) > 100


def test_a_range_of_padding_and_padding_beyond_the_stored_bits(tmp_path):
    series = Series(modality="MR", slope=1.0, intercept=0.0)

    def edit(ds, k):
        stored = series.stored(k)
        stored[0, :3] = [-5, -7, -9]
        hs.put_pixels(ds, stored)
        ds.add_new(0x00280120, "SS", -9)
        ds.add_new(0x00280121, "SS", -5)

    write_series(tmp_path / "a", series, edit)
    (volume,) = read(tmp_path / "a")
    smallest = min(series.stored(k)[1:].min() for k in range(6))
    want = min(smallest, min(series.stored(k)[0, 3:].min() for k in range(6)))
    np.testing.assert_array_equal(volume.array[0, :3, 0], np.full((3, 6), want, np.float32))
    ct = Series(slope=1.0, intercept=0.0)

    def older(ds, k):
        stored = ct.stored(k)
        stored[0, :3] = -30000
        hs.put_pixels(ds, stored)
        ds.BitsStored, ds.HighBit = 12, 11
        ds.add_new(0x00280120, "SS", -30000)

    write_series(tmp_path / "b", ct, older)
    (volume,) = read(tmp_path / "b")
    np.testing.assert_array_equal(volume.array[0, :3, 0], np.full((3, 6), -1000, np.float32))


def test_monochrome1_leaves_hounsfield_units_and_inverts_radiographs(tmp_path):
    def edit(ds, k):
        ds.PhotometricInterpretation = "MONOCHROME1"

    write_series(tmp_path / "ct", Series(), edit)
    assert_in_place(read(tmp_path / "ct")[0])
    (tmp_path / "dx").mkdir()
    ds = hs.make_slice(Series(), 0)
    ds.SOPClassUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.1.1", "DX"
    for word in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "RescaleSlope",
        "RescaleIntercept",
        "PixelSpacing",
    ):
        delattr(ds, word)
    ds.ImagerPixelSpacing = [0.2, 0.1]
    ds.PhotometricInterpretation = "MONOCHROME1"
    hs.put_pixels(ds, np.arange(12).reshape(3, 4), bits=12, signed=False)
    write(ds, tmp_path / "dx" / "a.dcm")
    (volume,) = read(tmp_path / "dx")
    np.testing.assert_array_equal(volume.array[0, :, :, 0].T, 4095 - np.arange(12).reshape(3, 4))
    assert volume.spacing_mm == pytest.approx((0.1, 0.2, 1))
    assert set(volume.info.flags) == {"projection", "single_slice", "inverted"}


def test_flags_say_what_a_trainer_should_know(tmp_path):
    def edit(ds, k):
        ds.BurnedInAnnotation, ds.RecognizableVisualFeatures, ds.LossyImageCompression = "YES", "YES", "01"

    write_series(tmp_path, Series(), edit)
    assert set(read(tmp_path)[0].info.flags) == {"burned_in", "recognizable", "lossy"}


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


def test_series_of_one_folder_come_apart(tmp_path):
    write_series(tmp_path / "deep" / "a", Series())
    write_series(tmp_path / "deep" / "b", Series(step_mm=1.0))
    volumes = read(tmp_path)
    assert sorted(v.spacing_mm[2] for v in volumes) == pytest.approx([1.0, 2.5])
    for volume in volumes:
        assert_in_place(volume)


@pytest.mark.parametrize("private", [True, False])
def test_a_mosaic_that_lost_its_image_type_is_refused(tmp_path, private):
    import struct

    ds = hs.make_slice(Series(modality="MR"), 0)
    if private:
        ds.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
        ds.add_new(0x0019100A, "US", 35)
    else:
        name = b"NumberOfImagesInMosaic".ljust(64, b"\0")
        element = (
            name
            + struct.pack("<i4sii", 1, b"US\0\0", 10, 6)
            + struct.pack("<i4i", 77, 2, 2, 77, 2)
            + b"35\0\0"
        )
        ds.add_new(0x00291010, "OB", b"SV10\4\3\2\1" + element + bytes(40))
    with pytest.raises(ImageError, match="Siemens mosaic"):
        read(write(ds, tmp_path / "a.dcm"))


def test_a_modality_that_is_no_modality_is_not_told_on(tmp_path):
    write_series(tmp_path, Series(), lambda ds, k: setattr(ds, "Modality", "CANARY"))
    (volume,) = read(tmp_path)
    assert volume.info.modality == ""


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
