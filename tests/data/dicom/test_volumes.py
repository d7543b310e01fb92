"""What becomes of a series: rescaling, flags, objects without an image, and images of several patients."""

from __future__ import annotations

import warnings

import hard_series as hs
import numpy as np
import pydicom
import pytest
from data.layouts.dicom_folders import put
from hard_series import Series, assert_in_place, write, write_series
from pydicom.uid import SecondaryCaptureImageStorage, UltrasoundImageStorage

from medfed.data.dicom.file import open_dicom
from medfed.data.dicom.volumes import is_placed_capture
from medfed.data.read import read
from medfed.data.settings import Images
from medfed.data.transforms import check_preparable
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


def picture(folder, *, series=None, **elements):
    """Write an ultrasound image in grey, without a place in the patient, and return its path and values."""
    series = series or Series(shape=(1, 5, 7), slope=1.0, intercept=0.0, signed=False)
    ds = hs.make_slice(series, 0)
    for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(ds, word)
    del ds.RescaleSlope, ds.RescaleIntercept
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    ds.Modality = "US"
    for word, value in elements.items():
        setattr(ds, word, value)
    folder.mkdir(parents=True, exist_ok=True)
    hs.write(ds, folder / "picture.dcm")
    return folder / "picture.dcm", series.stored(0)


SECONDARY = {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "OT"}


@pytest.mark.parametrize("elements", [{}, SECONDARY, {**SECONDARY, "Modality": "MG"}], ids=str)
def test_a_grey_picture_without_a_place_is_a_plane_in_mm_or_in_pixels(tmp_path, elements) -> None:
    path, stored = picture(tmp_path / "px", **elements)
    (volume,) = read(path)
    np.testing.assert_array_equal(volume.array[0, :, :, 0], stored.T)  # X along columns, Y along rows
    assert {"picture", "pixels", "single_slice"} <= set(volume.info.flags)
    np.testing.assert_array_equal(volume.affine_ras, np.diag([-1, -1, 1, 1]))
    path, _ = picture(tmp_path / "mm", **elements, PixelSpacing=[0.4, 0.2])
    (volume,) = read(tmp_path / "mm")  # alone in its folder
    np.testing.assert_array_equal(volume.affine_ras, np.diag([-0.2, -0.4, 1, 1]))
    assert "pixels" not in volume.info.flags
    # White is high: of 16 bits, low is 65535.
    path, stored = picture(tmp_path / "inverted", **elements, PhotometricInterpretation="MONOCHROME1")
    (volume,) = read(path)
    np.testing.assert_array_equal(volume.array[0, :, :, 0], 65535 - stored.T)
    assert "inverted" in volume.info.flags


def test_a_grey_picture_is_of_a_2d_study_alone(tmp_path) -> None:
    path, _ = picture(tmp_path, PixelSpacing=[1, 1])
    (volume,) = read(path)
    check_preparable(volume, Images(spatial_dims=2, spacing_mm="native", patch=None))
    with pytest.raises(ImageError, match=r"a picture without a place .* set data\.spatial_dims to 2"):
        check_preparable(volume, Images(spacing_mm=(1, 1, 1), patch=(8, 8, 8)))


def test_a_slice_without_a_place_is_never_passed_over_as_a_picture(tmp_path) -> None:
    """A series of a 3D probe of which one image lost its place: without it the rest would be even."""
    series = Series(signed=False)
    ultrasound = {"SOPClassUID": UltrasoundImageStorage, "Modality": "US"}
    files = put(tmp_path, series, **ultrasound)
    files[-1].unlink()
    picture(tmp_path, series=series)
    with pytest.raises(ImageError, match="1 of 6 images lack ImagePositionPatient"):
        read(tmp_path)
    # A picture of the screen beside the slices is left out, with a note.
    picture(tmp_path, series=series, **SECONDARY)
    (volume,) = read(tmp_path)
    assert volume.shape == (7, 5, 5)
    assert volume.info.skipped == ("a secondary capture, a picture of a screen",)
    for modality in ("CT", "MR"):
        path, _ = picture(tmp_path / modality, Modality=modality, SOPClassUID=hs.CLASSES[modality])
        with pytest.raises(ImageError, match="lack ImagePositionPatient"):
            read(path)


CAPTURED = {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "CT"}


def test_captures_with_their_place_are_a_volume_where_nothing_else_is(tmp_path) -> None:
    """ITK writes series so if no class is given."""
    series = Series(shape=(5, 6, 7))
    files = put(tmp_path / "itk", series, **CAPTURED)
    for source in (tmp_path / "itk", files):
        (volume,) = read(source)
        assert_in_place(volume, shape=(7, 6, 5))
        assert "secondary_capture" in volume.info.flags
    put(tmp_path / "itk", Series(shape=(6, 6, 7)))  # beside other images they are derived from these
    (volume,) = read(tmp_path / "itk")
    assert volume.shape == (7, 6, 6)
    assert volume.info.skipped == ("a secondary capture, a picture of a screen",) * 5
    assert "secondary_capture" not in volume.info.flags


@pytest.mark.parametrize("lost", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", ""])
def test_captures_that_lack_their_place_are_no_slices(tmp_path, lost: str) -> None:
    (path, *_) = put(tmp_path, Series(), **CAPTURED)
    assert is_placed_capture(open_dicom(str(path)))
    ds = pydicom.dcmread(path)
    if lost:
        delattr(ds, lost)
    else:
        ds.Modality = "OT"
    ds.save_as(path)
    assert not is_placed_capture(open_dicom(str(path)))


def test_a_film_of_several_frames_in_grey_is_refused(tmp_path) -> None:
    path, _ = picture(tmp_path, NumberOfFrames=2)
    with pytest.raises(ImageError, match="2 frames without positions"):
        read(path)
