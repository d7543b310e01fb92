"""Every transfer syntax gives the same voxels; files are found without suffix, preamble or by DICOMDIR."""

from __future__ import annotations

import gzip
import struct
import zipfile

import hard_series as hs
import numpy as np
import pydicom
import pytest
from hard_series import Series, assert_in_place, write, write_series
from pydicom import uid
from pydicom.encaps import encapsulate

from medfed.data.dicom.directory import describe_dicomdir
from medfed.data.dicom.file import open_dicom
from medfed.data.read import read
from medfed.errors import ImageError

JPEG_LOSSLESS = uid.JPEGLosslessSV1


def jpeg_lossless(ds):
    """Compress by ITU-T T.81 annex H, first-order prediction, with a flat Huffman table."""
    words = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).astype(int)
    guess = np.empty_like(words)
    guess[:, 1:] = words[:, :-1]
    guess[1:, 0] = words[:-1, 0]
    guess[0, 0] = 1 << 15
    bits = []
    for difference in (words - guess).ravel():
        difference = (difference + (1 << 15)) % (1 << 16) - (1 << 15)
        difference = 1 << 15 if difference == -(1 << 15) else difference
        size = int(abs(difference)).bit_length()
        bits.append(f"{size:05b}")
        if 0 < size < 16:
            bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">HHBHHBBBB", 0xFFC3, 11, 16, ds.Rows, ds.Columns, 1, 1, 0x11, 0)
    table = (
        struct.pack(">HHB", 0xFFC4, 2 + 1 + 16 + 17, 0)
        + bytes([0, 0, 0, 0, 17] + [0] * 11)
        + bytes(range(17))
    )
    head = struct.pack(">HHBBBBBB", 0xFFDA, 8, 1, 1, 0, 1, 0, 0)
    ds.PixelData = encapsulate([b"\xff\xd8" + frame + table + head + scan + b"\xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEG_LOSSLESS


def encode(ds, syntax):
    if syntax == uid.ExplicitVRBigEndian:
        swapped = (
            np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes() if ds.BitsAllocated == 16 else None
        )
        ds.PixelData = swapped if swapped is not None else ds.PixelData
        ds.file_meta.TransferSyntaxUID = syntax
    elif syntax in (
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ):
        ds.file_meta.TransferSyntaxUID = syntax
    elif syntax == JPEG_LOSSLESS:
        jpeg_lossless(ds)
    else:
        ds.compress(syntax, generate_instance_uid=False)


SYNTAXES = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    JPEG_LOSSLESS,
]


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


@pytest.mark.parametrize(
    "syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.ExplicitVRLittleEndian], ids=lambda s: s.name
)
def test_compressed_multiframe_and_its_frame_count(tmp_path, syntax):
    series = Series(shape=(4, 40, 36), modality="MR")
    ds = hs.enhanced(series, [{"k": k} for k in (1, 0, 2, 3)])
    if syntax != uid.ExplicitVRLittleEndian:
        ds.compress(syntax, generate_instance_uid=False)
    path = write(ds, tmp_path / "a.dcm")
    assert_in_place(read(path)[0], shape=(36, 40, 4))
    del ds.PerFrameFunctionalGroupsSequence[3]
    ds.NumberOfFrames = 3
    with pytest.raises(ImageError, match=r"pixel data hold 11520 bytes|4 compressed fragments and 3 frames"):
        read(write(ds, path))
    ds.NumberOfFrames = 5
    with pytest.raises(ImageError, match="5 frames are announced, 3 have a position"):
        read(write(ds, path))


def test_two_images_in_one_frame_are_refused(tmp_path):
    ds = hs.make_slice(Series(shape=(1, 40, 36)), 0)
    ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    (frame,) = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
    ds.PixelData = encapsulate([frame, frame], has_bot=False)
    with pytest.raises(ImageError, match="2 compressed images where the header announces 1"):
        read(write(ds, tmp_path / "a.dcm"))


def test_one_frame_in_several_fragments(tmp_path):
    series = Series(shape=(4, 40, 36))

    def edit(ds, k):
        ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
        (frame,) = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
        ds.PixelData = encapsulate([frame], fragments_per_frame=3)

    write_series(tmp_path, series, edit)
    assert_in_place(read(tmp_path)[0])


def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(tmp_path):
    ds = hs.make_slice(Series(shape=(1, 40, 36)), 0)
    ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    ds.Rows = 39
    with pytest.raises(ImageError, match=r"compressed image is 40 x 36 .*announces 39 x 36"):
        read(write(ds, tmp_path / "a.dcm"))


def test_files_without_ending_preamble_or_meta_header(tmp_path):
    series = Series()
    paths = write_series(tmp_path, series)
    for k, path in enumerate(paths):
        data = path.read_bytes()
        path.unlink()
        if k % 3 == 1:
            data = data[132:]
        if k % 3 == 2:
            ds = hs.make_slice(series, k)
            path = tmp_path / f"im {k}.v1.2"
            plain = pydicom.Dataset(ds)
            plain.save_as(path, implicit_vr=True, little_endian=True)
            continue
        (tmp_path / f"IM{k}").write_bytes(data)
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 5, 6))


def test_a_dicomdir_names_the_files_that_are_read(tmp_path):
    from pydicom.fileset import FileSet

    series = Series()
    files = FileSet()
    for k in range(6):
        ds = hs.make_slice(series, k)
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.SeriesNumber = (
            "20200101",
            "120000",
            "1",
            "",
            1,
        )
        files.add(ds)
    files.write(tmp_path / "disc")
    (volume,) = read(tmp_path / "disc" / "DICOMDIR")
    assert_in_place(volume, shape=(7, 5, 6))
    (volume,) = read(tmp_path / "disc")
    assert_in_place(volume, shape=(7, 5, 6))
    assert any("DICOMDIR" in line for line in volume.info.skipped)
    victim = next(p for p in (tmp_path / "disc").rglob("*") if p.is_file() and p.name != "DICOMDIR")
    victim.unlink()
    with pytest.raises(ImageError, match="1 of the 6 files that the DICOMDIR lists"):
        read(tmp_path / "disc" / "DICOMDIR")
    # Read as a folder, the remaining files are a volume, and a note names what may be missing.
    text = "a DICOMDIR, which lists files and holds no image; 1 of its 6 files are missing"
    assert describe_dicomdir(open_dicom(str(tmp_path / "disc" / "DICOMDIR"))) == text


def test_colour_is_skipped_in_a_folder_and_refused_alone(tmp_path):
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
    with pytest.raises(ImageError, match="colour picture of 3 samples"):
        read(path)


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


def test_archives_are_named_and_not_looked_into(tmp_path):
    write_series(tmp_path / "a", Series())
    (tmp_path / "b").mkdir()
    first = next((tmp_path / "a").iterdir())
    with zipfile.ZipFile(tmp_path / "b" / "a.zip", "w") as archive:
        archive.write(first, "a.dcm")
    with pytest.raises(ImageError, match="a zip archive, which is not opened; unpack it"):
        read(tmp_path / "b" / "a.zip")
    (tmp_path / "b" / "a.dcm.gz").write_bytes(gzip.compress(first.read_bytes()))
    with pytest.raises(ImageError, match=r"only 2 other files, the first a packed archive .* unpack it"):
        read(tmp_path / "b")


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
