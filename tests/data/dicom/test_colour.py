"""DICOM in colour: the values that were written, the same as pydicom's, and what is refused."""

from __future__ import annotations

import hard_series as hs
import numpy as np
import pydicom
import pytest
from hard_series import Series, write
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, pixel_array

from medfed.data.case import Case
from medfed.data.case_reading import read_case
from medfed.data.channels import unnamed_note
from medfed.data.dicom.colour import _jpeg_colours
from medfed.data.index import Index
from medfed.data.read import read
from medfed.data.settings import Images
from medfed.errors import ImageError

RGB = np.random.default_rng(1).integers(0, 256, (5, 6, 3)).astype(np.uint8)  # rows, columns, samples
# Every kind of colour among pydicom's test files: native and compressed, of both byte orders.
PYDICOM_FILES = (
    "ExplVR_BigEnd.dcm",
    "GDCMJ2K_TextGBR.dcm",
    "SC_jpeg_no_color_transform.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_dcmtk_+eb+cy+n1.dcm",
    "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_jls_lossy_sample.dcm",
    "SC_rgb_jpeg.dcm",
    "SC_rgb_jpeg_app14_dcmd.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_rle.dcm",
    "SC_rgb_small_odd.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "SC_rgb_small_odd_jpeg.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "examples_jpeg2k.dcm",
    "examples_rgb_color.dcm",
)


def colour(photometric="RGB", data=None, *, samples=3, planar=0, **elements):
    """Return an ultrasound image of 5 rows and 6 columns without a place or a size."""
    ds = hs.make_slice(Series(), 0)
    for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(ds, word)
    del ds.RescaleSlope, ds.RescaleIntercept
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.UltrasoundImageStorage
    ds.Modality, ds.PhotometricInterpretation, ds.SamplesPerPixel = "US", photometric, samples
    ds.Rows, ds.Columns, ds.PlanarConfiguration = 5, 6, planar
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    data = RGB.tobytes() if data is None else data
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB"
    for word, value in elements.items():
        setattr(ds, word, value)
    return ds


def planes(path):
    """Return an image's values as (rows, columns, channels)."""
    (volume,) = read(path)
    return volume.array[..., 0].transpose(2, 1, 0)


def test_rgb_of_both_planar_configurations_is_what_a_png_of_it_is(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    (picture,) = read(tmp_path / "a.png")
    pixelwise = write(colour(), tmp_path / "a.dcm")
    planewise = write(colour(data=RGB.transpose(2, 0, 1).tobytes(), planar=1), tmp_path / "b.dcm")
    for path in (pixelwise, planewise):
        (volume,) = read(path)
        np.testing.assert_array_equal(volume.array, picture.array)
        np.testing.assert_array_equal(volume.affine_ras, picture.affine_ras)
        assert volume.array.dtype == np.float32
        assert set(picture.info.flags) == set(volume.info.flags) == {"pixels", "single_slice", "colour"}


def ybr(y, cb, cr):
    """Return R, G, B of YBR_FULL (PS3.3 C.7.6.3.1.2, solved for RGB)."""
    return y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)


def test_ybr_is_turned_into_rgb_and_two_pixels_of_422_share_their_colour(tmp_path):
    generator = np.random.default_rng(2)
    full = np.stack([generator.integers(60, 190, (5, 6)), *generator.integers(100, 156, (2, 5, 6))], axis=-1)
    expected = np.stack(ybr(*np.moveaxis(full.astype(float), -1, 0)), axis=-1)
    path = write(colour("YBR_FULL", full.astype(np.uint8).tobytes()), tmp_path / "a.dcm")
    assert np.abs(planes(path) - expected).max() <= 1  # rounding of the decoder's coefficients
    y, cb, cr = full[..., 0], full[:, ::2, 1], full[:, ::2, 2]
    stored = np.stack([y[:, ::2], y[:, 1::2], cb, cr], axis=-1).astype(np.uint8)
    expected = np.stack(ybr(y, cb.repeat(2, axis=1), cr.repeat(2, axis=1)), axis=-1)
    path = write(colour("YBR_FULL_422", stored.tobytes()), tmp_path / "b.dcm")
    assert np.abs(planes(path) - expected).max() <= 1


def palette(ds, bits, tables, first=10):
    for name, entries in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [len(entries), first, bits])
        data = np.asarray(entries, "u1" if bits == 8 else "<u2").tobytes()
        setattr(ds, f"{name}PaletteColorLookupTableData", data + b"\0" * (len(data) % 2))
    return ds


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_gives_its_colours_on_the_scale_of_rgb(tmp_path, bits):
    numbers = np.arange(30).reshape(5, 6).astype(np.uint8)  # the palette is of 10, 11 and 12
    tables = np.array([[0, 100, 255], [255, 7, 0], [1, 2, 3]])
    ds = palette(colour("PALETTE COLOR", numbers.tobytes(), samples=1), bits, tables << (bits - 8))
    expected = tables.T[np.clip(numbers.astype(int) - 10, 0, 2)]
    np.testing.assert_array_equal(planes(write(ds, tmp_path / "a.dcm")), expected)


def test_a_palette_of_greys_has_one_channel_as_that_of_a_png(tmp_path):
    numbers = np.arange(30).reshape(5, 6).astype(np.uint8)
    ds = palette(colour("PALETTE COLOR", numbers.tobytes(), samples=1), 8, [range(30, 0, -1)] * 3, first=0)
    np.testing.assert_array_equal(planes(write(ds, tmp_path / "a.dcm"))[..., 0], 30 - numbers)


@pytest.mark.parametrize("name", PYDICOM_FILES)
def test_pydicoms_files_have_the_values_that_pydicom_gives(name):
    path = get_testdata_file(name)
    np.testing.assert_array_equal(planes(path), pixel_array(pydicom.dcmread(path)))


def test_pydicoms_palette_is_its_high_bytes():
    path = get_testdata_file("examples_palette.dcm")
    ds = pydicom.dcmread(path)
    expected = apply_color_lut(pixel_array(ds), ds)
    assert expected.dtype == np.uint16
    np.testing.assert_array_equal(planes(path), expected >> 8)


def test_a_pixel_spacing_puts_the_plane_in_mm(tmp_path):
    (volume,) = read(write(colour(PixelSpacing=[0.5, 0.25]), tmp_path / "a.dcm"))
    np.testing.assert_array_equal(volume.affine_ras, np.diag([-0.25, -0.5, 1, 1]))
    assert "pixels" not in volume.info.flags
    assert volume.info.modality == "US"


def test_burnt_in_text_is_flagged(tmp_path):
    (volume,) = read(write(colour(BurnedInAnnotation="YES"), tmp_path / "a.dcm"))
    assert "burned_in" in volume.info.flags


REFUSED = {
    "film": ({"NumberOfFrames": 2, "PixelData": RGB.tobytes() * 2}, "a film in colour of 2 frames"),
    "bits": (
        {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelData": RGB.tobytes() * 2},
        "16 bits allocated, 16 stored; colours of 8 bits",
    ),
    "cut": ({"PixelData": RGB.tobytes()[:-20]}, "hold 70 bytes, 5 x 6 pixels need 90"),
    "partial": ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "is none of RGB, YBR_FULL"),
    "samples": ({"PhotometricInterpretation": "PALETTE COLOR"}, "does not fit its samples per pixel"),
    "422 of full length": ({"PhotometricInterpretation": "YBR_FULL_422"}, "hold 90 bytes, .* need 60"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_single_plane_of_eight_bits_is_refused(tmp_path, kind):
    elements, message = REFUSED[kind]
    with pytest.raises(ImageError, match=message):
        read(write(colour(**elements), tmp_path / "a.dcm"))


def test_a_palette_of_an_unknown_scale_or_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ImageError, match="is missing, segmented or damaged"):
        read(write(colour("PALETTE COLOR", bytes(30), samples=1), tmp_path / "a.dcm"))
    ds = palette(colour("PALETTE COLOR", bytes(30), samples=1), 16, [[1, 2], [3, 4], [5, 255]])
    with pytest.raises(ImageError, match=r"announces 16 bits and its largest entry is 2, so that the scale"):
        read(write(ds, tmp_path / "b.dcm"))


def jpeg(transform):
    """Return a JPEG of RGB with Adobe's marker, of which only the transform is changed."""
    import io

    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "JPEG", quality=95)
    data = out.getvalue()
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    length = int.from_bytes(data[4:6], "big")
    return data[:2] + adobe + data[4 + length :]  # in place of JFIF's


@pytest.mark.parametrize(("photometric", "transform"), [("RGB", 1), ("YBR_FULL_422", 0)])
def test_a_jpeg_whose_colours_contradict_the_header_is_refused(tmp_path, photometric, transform):
    assert _jpeg_colours(jpeg(transform)) == (b"\1\2\3", False, transform)
    ds = colour(photometric)
    ds.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    ds.PixelData = encapsulate([jpeg(transform)])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(ImageError, match="disagree whether its colours are RGB or YBR"):
        read(write(ds, tmp_path / "a.dcm"))


def case_of(path):
    return Case("c", "p", "t0", (path,))


def test_a_grey_study_refuses_colours_and_says_if_they_are_grey(tmp_path):
    grey = Images(spacing_mm=(1.0, 1.0), patch=(8, 8), spatial_dims=2)
    colours = Images(spacing_mm=(1.0, 1.0), patch=(8, 8), spatial_dims=2, channels=3)
    path = write(colour(), tmp_path / "a.dcm")
    assert read_case(case_of(path), colours, 2)[0].array.shape == (3, 6, 5, 1)
    with pytest.raises(ImageError, match=r"has 3 channels, .*data.channels is 1; it is in colour: leave"):
        read_case(case_of(path), grey, 2)
    alike = write(colour(data=RGB[..., :1].repeat(3, axis=2).tobytes()), tmp_path / "b.dcm")
    with pytest.raises(
        ImageError, match="is 1; it is grey and stored in colour, its three channels are alike"
    ):
        read_case(case_of(alike), grey, 2)


def test_a_folder_of_nothing_else_holds_the_image(tmp_path):
    (tmp_path / "p0").mkdir()
    write(colour(), tmp_path / "p0" / "a.dcm")
    np.testing.assert_array_equal(planes(tmp_path / "p0"), RGB)
    write(colour(), tmp_path / "p0" / "b.dcm")
    assert len(read(tmp_path / "p0")) == 2


def test_the_order_of_colours_needs_no_word(tmp_path):
    index = Index(tmp_path, "cases.csv", (case_of(tmp_path / "a.dcm"),))
    assert unnamed_note(index, inputs=3) == ""
    volume = Index(tmp_path, "cases.csv", (case_of(tmp_path / "a.nii.gz"),))
    assert "nothing in the folder names the channels" in unnamed_note(volume, inputs=3)


def test_components_called_rgb_are_rgb_whatever_the_header_says(tmp_path):
    original = get_testdata_file("SC_rgb_dcmtk_+eb+cr.dcm")  # a JPEG whose components are R, G and B
    ds = pydicom.dcmread(original)
    ds.PhotometricInterpretation = "YBR_FULL"
    np.testing.assert_array_equal(planes(write(ds, tmp_path / "a.dcm")), planes(original))
