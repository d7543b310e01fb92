"""Every transfer syntax gives the same voxels; stored bits, signs, padding and lookup tables."""

from __future__ import annotations

import hard_series as hs
import numpy as np
import pytest
from dicom_encodings import SYNTAXES, encode
from hard_series import Series, assert_in_place, write, write_series
from pydicom import uid
from pydicom.encaps import encapsulate

from medfed.data.read import read
from medfed.errors import ImageError


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_each_encoding_gives_the_same_voxels(tmp_path, syntax, signed):
    series = Series(shape=(4, 40, 36), signed=signed, intercept=500.0 if signed else -1024.0)
    write_series(tmp_path, series, lambda ds, k: encode(ds, syntax))
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(36, 40, 4))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_12_bits_stored(tmp_path, syntax):
    series = Series(shape=(4, 40, 36), slope=2.0, intercept=500.0)

    def edit(ds, k):
        ds.BitsStored, ds.HighBit = 12, 11
        encode(ds, syntax)

    write_series(tmp_path, series, edit)
    assert_in_place(read(tmp_path)[0], slope=2)


def test_mixed_encodings(tmp_path):
    series = Series(shape=(8, 40, 36))
    write_series(tmp_path, series, lambda ds, k: encode(ds, SYNTAXES[k]))
    assert_in_place(read(tmp_path)[0], shape=(36, 40, 8))


def test_8_bits_in_big_endian_words(tmp_path):
    series = Series(shape=(4, 5, 8), slope=4.0, intercept=0.0, allocated=8, signed=False)

    def edit(ds, k):
        words = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes()
        ds.PixelData = words
        ds["PixelData"].VR = "OW"
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian

    write_series(tmp_path, series, edit)
    # pydicom writes OW as it is given; the swapped words are what PS3.5 asks for.
    assert_in_place(read(tmp_path)[0], slope=4)


def test_an_unknown_transfer_syntax_is_refused(tmp_path):
    ds = hs.make_slice(Series(), 0)
    ds.compress(uid.RLELossless, generate_instance_uid=False)
    path = write(ds, tmp_path / "a.dcm")
    data = path.read_bytes().replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.6\0")
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"transfer syntax 1\.2\.840\.10008\.1\.2\.6 is not supported"):
        read(path)


def test_jpeg_of_12_bits_says_what_is_wrong_with_it(tmp_path):
    """The file is valid and its decoder is at fault, so the message must not call it damaged."""

    def edit(ds, k):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
        ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.file_meta.TransferSyntaxUID = uid.JPEGExtended12Bit

    write_series(tmp_path, Series(shape=(3, 5, 7)), edit)
    with pytest.raises(
        ImageError, match=r"JPEG Extended of 12 bits is not supported, .* Explicit VR Little Endian"
    ):
        read(tmp_path)


def test_a_codestream_that_leaves_the_sign_open_is_refused(tmp_path):
    """Words of 1500 in 11 unsigned bits are 1500 or, their highest bit a sign, -548; the signed
    header does not say.
    """
    from openjpeg.utils import encode_array

    def compressed(top, depth):
        words = np.linspace(0, top, 64 * 64).astype(np.uint16).reshape(64, 64)

        def edit(ds, k):
            ds.PixelRepresentation = 1
            ds.PixelData = encapsulate([encode_array(words, bits_stored=depth)])
            ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
            ds.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless

        return edit

    write_series(tmp_path / "open", Series(shape=(1, 64, 64)), compressed(1500, 11))
    with pytest.raises(ImageError, match=r"unsigned of 11 bits, the header's signed of 16: .* sign or not"):
        read(tmp_path / "open")
    write_series(tmp_path / "told", Series(shape=(1, 64, 64)), compressed(1500, 12))  # 1500 < 2048: no sign
    assert read(tmp_path / "told")[0].array.max() == 1500 * 0.5 - 1024


def test_pixel_data_with_a_few_zeros_too_many(tmp_path):
    write_series(tmp_path, Series(), lambda ds, k: setattr(ds, "PixelData", ds.PixelData + b"\0\0\0\0"))
    assert_in_place(read(tmp_path)[0], shape=(7, 5, 6))
    write_series(tmp_path / "b", Series(), lambda ds, k: setattr(ds, "PixelData", ds.PixelData + b"\0\0\1\0"))
    with pytest.raises(ImageError, match="pixel data hold 74 bytes"):
        read(tmp_path / "b")


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
    assert set(volume.info.flags) == {"projection", "single_slice", "inverted", "detector_spacing"}
    ds.PixelSpacing = [0.16, 0.08]  # calibrated: it goes before the detector's
    write(ds, tmp_path / "dx" / "a.dcm")
    (volume,) = read(tmp_path / "dx")
    assert volume.spacing_mm == pytest.approx((0.08, 0.16, 1))
    assert "detector_spacing" not in volume.info.flags
    del ds.PixelSpacing, ds.ImagerPixelSpacing
    write(ds, tmp_path / "dx" / "a.dcm")
    (volume,) = read(tmp_path / "dx")
    assert volume.spacing_mm == (1, 1, 1)
    assert {"pixels", "projection"} <= set(volume.info.flags)
