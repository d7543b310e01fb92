"""What becomes of a series: rescaling, flags, objects without an image, and images of several patients."""

from __future__ import annotations

import warnings

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, assert_in_place, write, write_series

from medfed.data.read import read
from medfed.errors import ImageError


def test_colour_is_skipped_among_slices_and_read_alone(tmp_path):
    series = Series()
    write_series(tmp_path, series)
    ds = hs.make_slice(series, 0)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.PixelData = 7, 0, b"\0" * (5 * 7 * 3 + 1)
    path = write(ds, tmp_path / "rgb.dcm")
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 5, 6))
    assert any("colour" in line for line in volume.info.skipped)
    assert read(path)[0].array.shape == (3, 7, 5, 1)


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


def test_slope_and_intercept_are_each_slices_own(tmp_path):
    series = Series(modality="PT")

    def edit(ds, k):
        ds.RescaleSlope, ds.RescaleIntercept = f"{0.1 + 0.05 * k:.2f}", f"{-k}"
        hs.put_pixels(ds, series.stored(k, 0.1 + 0.05 * k, -k))

    write_series(tmp_path, series, edit)
    assert_in_place(read(tmp_path)[0])


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


def test_flags_say_what_a_trainer_should_know(tmp_path):
    def edit(ds, k):
        ds.BurnedInAnnotation, ds.RecognizableVisualFeatures, ds.LossyImageCompression = "YES", "YES", "01"

    write_series(tmp_path, Series(), edit)
    assert set(read(tmp_path)[0].info.flags) == {"burned_in", "recognizable", "lossy"}


def test_series_of_one_folder_come_apart(tmp_path):
    write_series(tmp_path / "deep" / "a", Series())
    write_series(tmp_path / "deep" / "b", Series(step_mm=1.0))
    volumes = read(tmp_path)
    assert sorted(v.spacing_mm[2] for v in volumes) == pytest.approx([1.0, 2.5])
    for volume in volumes:
        assert_in_place(volume)


def test_a_modality_that_is_no_modality_is_not_told_on(tmp_path):
    write_series(tmp_path, Series(), lambda ds, k: setattr(ds, "Modality", "CANARY"))
    (volume,) = read(tmp_path)
    assert volume.info.modality == ""
