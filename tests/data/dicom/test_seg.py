"""DICOM segmentations on their volume's grid."""

from __future__ import annotations

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, segmentation, write, write_series

from medfed.data.read import read, read_label
from medfed.errors import LabelError


def test_a_sparse_binary_segmentation_lands_on_its_slices(tmp_path, series, volume):
    masks = hs.blob(series)
    frames = [(1, k, masks[k]) for k in (4, 1)] + [(3, 5, masks[5])]
    path = write(segmentation(series, frames), tmp_path / "seg.dcm")
    want = np.zeros(series.shape, np.uint8)
    want[4], want[1] = masks[4], masks[1]
    want[5] = 3 * masks[5]
    label = read_label(path, volume, classes=4)
    np.testing.assert_array_equal(label.array, hs.as_xyz(want)[None])
    with pytest.raises(LabelError, match="values 3; the task has classes 0 to 1"):
        read_label(path, volume, classes=2)
    named = read_label(path, volume, classes=2, names={"segment 3": 1})
    np.testing.assert_array_equal(named.array, hs.as_xyz(want == 3)[None])
    assert named.info.skipped == ("segment 1, which the given names omit",)


def test_a_cropped_segmentation_lands_at_its_corner(tmp_path, series, volume):
    mask = np.ones((3, 4), bool)
    path = write(segmentation(series, [(1, 2, mask)], corner=(4, 6)), tmp_path / "seg.dcm")
    want = np.zeros(series.shape, np.uint8)
    want[2, 4:7, 6:10] = 1
    np.testing.assert_array_equal(read_label(path, volume).array, hs.as_xyz(want)[None])
    path = write(segmentation(series, [(1, 2, mask)], corner=(7, 6)), tmp_path / "seg.dcm")
    with pytest.raises(LabelError, match=r"1.5 mm beyond the image"):
        read_label(path, volume)
    path = write(segmentation(series, [(1, 2, mask)], corner=(0.5, 0)), tmp_path / "seg.dcm")
    with pytest.raises(LabelError, match=r"0.75 mm off"):
        read_label(path, volume)


def test_a_fraction_counts_from_one_half(tmp_path, series, volume):
    fractions = np.random.default_rng(0).integers(0, 101, series.shape).astype(np.uint8)
    fractions[0, 0, :3] = 49, 50, 51
    frames = [(1, k, fractions[k]) for k in range(6)]
    path = write(segmentation(series, frames, kind="FRACTIONAL", most=100), tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_label(path, volume).array, hs.as_xyz(fractions >= 50)[None])
    path = write(segmentation(series, frames, kind="FRACTIONAL", most=99), tmp_path / "seg.dcm")
    with pytest.raises(LabelError, match="exceeds MaximumFractionalValue"):
        read_label(path, volume)


def test_overlapping_segments_get_a_channel_each(tmp_path, series, volume):
    one, two = hs.blob(series, 1), hs.blob(series, 2)
    frames = [(1, k, one[k]) for k in range(6)] + [(2, k, two[k]) for k in range(6)]
    path = write(segmentation(series, frames), tmp_path / "seg.dcm")
    label = read_label(path, volume, classes=3)
    np.testing.assert_array_equal(label.array, np.stack([hs.as_xyz(one) * 1, hs.as_xyz(two) * 2]))
    assert label.info.flags == ("overlap",)
    later = read_label(path, volume, overlap="later")
    np.testing.assert_array_equal(later.array[0], np.where(hs.as_xyz(two), 2, hs.as_xyz(one)))
    with pytest.raises(LabelError, match=f"{int((one & two).sum())} voxels belong to several"):
        read_label(path, volume, overlap="refuse")


def test_a_segmentation_of_other_slices_is_refused(tmp_path, series, volume):
    other = Series(
        shape=series.shape, orientation=series.orientation, origin_mm=series.position(0) + series.normal
    )
    path = write(segmentation(other, [(1, 0, hs.blob(series)[0])]), tmp_path / "seg.dcm")
    with pytest.raises(LabelError, match=r"1.00 mm off"):
        read_label(path, volume)


def test_a_folder_with_one_segmentation(tmp_path, series, volume):
    (tmp_path / "seg").mkdir()
    write(segmentation(series, [(1, 0, hs.blob(series)[0])]), tmp_path / "seg" / "a.dcm")
    (tmp_path / "seg" / "notes.txt").write_text("hello")
    assert read_label(tmp_path / "seg", volume).array.sum() == hs.blob(series)[0].sum()
    write(segmentation(series, [(1, 0, hs.blob(series)[0])]), tmp_path / "seg" / "b.dcm")
    with pytest.raises(LabelError, match="holds 2 segmentations"):
        read_label(tmp_path / "seg", volume)


def test_a_label_map_segmentation(tmp_path, series, volume):
    planes = np.random.default_rng(0).integers(0, 3, series.shape)
    ds = segmentation(series, [(1, k, planes[k]) for k in range(6)], kind="LABELMAP")
    two = hs.Dataset()
    two.SegmentNumber, two.SegmentLabel = 2, "two"
    ds.SegmentSequence.append(two)
    path = write(ds, tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_label(path, volume, classes=3).array, hs.as_xyz(planes)[None])


def test_highdicom_places_segments_likewise(tmp_path, series, volume):
    import highdicom as hd
    from pydicom.sr.codedict import codes

    sources = [hs.make_slice(series, k) for k in range(6)]
    for ds in sources:
        ds.StudyDate = ds.StudyTime = ds.StudyID = ds.AccessionNumber = ds.PatientSex = (
            ds.ReferringPhysicianName
        ) = ""
        ds.SeriesNumber, ds.PositionReferenceIndicator, ds.Laterality = 1, "", ""
    mask = hs.blob(series)
    description = hd.seg.SegmentDescription(
        1, "one", codes.SCT.Organ, codes.SCT.Liver, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    seg = hd.seg.Segmentation(
        sources, mask, "BINARY", [description], hd.UID(), 2, hd.UID(), 1, "m", "m", "1", "1"
    )
    seg.save_as(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_label(tmp_path / "seg.dcm", volume).array, hs.as_xyz(mask)[None])


def test_a_sagittal_segmentation_of_an_axial_series(tmp_path):
    axial = Series(shape=(6, 9, 11))  # z, y, x
    write_series(tmp_path / "ct", axial)
    (volume,) = read(tmp_path / "ct")
    sagittal = Series(
        shape=(11, 6, 9),  # x, z, y
        orientation=(0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        origin_mm=axial.origin_mm,
        spacing_mm=(2.5, 1.5),
        step_mm=0.75,
        uids=axial.uids,
    )
    masks = hs.blob(sagittal)
    path = write(segmentation(sagittal, [(1, x, masks[x]) for x in (5, 3, 7)]), tmp_path / "seg.dcm")
    want = np.zeros(volume.shape, bool)
    for x in (5, 3, 7):
        want[x] = masks[x].T
    np.testing.assert_array_equal(read_label(path, volume).array[0], want)


@pytest.mark.parametrize("order", ["deflated", "big endian"])
def test_single_bits_in_other_transfer_syntaxes(tmp_path, series, volume, order):
    from pydicom import uid

    masks = hs.blob(series)
    ds = segmentation(series, [(1, k, masks[k]) for k in range(6)])
    ds.file_meta.TransferSyntaxUID = (
        uid.DeflatedExplicitVRLittleEndian if order == "deflated" else uid.ExplicitVRBigEndian
    )
    path = write(ds, tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_label(path, volume).array[0], hs.as_xyz(masks))


def test_frames_deflated_each_by_itself(tmp_path, series, volume):
    import zlib

    from pydicom import uid
    from pydicom.encaps import encapsulate

    masks = hs.blob(series)
    ds = segmentation(series, [(1, k, masks[k]) for k in range(6)])
    frames = []
    for mask in masks:
        stream = zlib.compressobj(wbits=-15)
        frames.append(stream.compress(np.packbits(mask, bitorder="little").tobytes()) + stream.flush())
    ds.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2) for frame in frames])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless  # pydicom writes no syntax that it does not know
    path = write(ds, tmp_path / "seg.dcm")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.8.1\0"))
    np.testing.assert_array_equal(read_label(path, volume).array[0], hs.as_xyz(masks))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"])
def test_a_binary_segmentation_in_jpeg_2000_has_codestreams_of_one_bit(tmp_path, syntax):
    from openjpeg.utils import encode_array
    from pydicom.encaps import encapsulate

    series = Series(shape=(6, 48, 40), intercept=0.0, slope=1.0)
    write_series(tmp_path / "ct", series)
    (volume,) = read(tmp_path / "ct")
    masks = np.random.default_rng(3).random((2, *series.shape[1:])) < 0.4
    ds = hs.segmentation(series, [(1, 1, masks[0]), (2, 4, masks[1])])
    streams = [
        encode_array(mask.astype(np.uint8), bits_stored=1, photometric_interpretation=2) for mask in masks
    ]
    assert all(stream[stream.index(b"\xff\x51") + 40] == 0 for stream in streams)  # the depth minus one
    ds.PixelData = encapsulate(streams)
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = syntax
    want = np.zeros(series.shape, np.uint8)
    want[1][masks[0]], want[4][masks[1]] = 1, 2
    label = read_label(write(ds, tmp_path / "seg.dcm"), volume)
    np.testing.assert_array_equal(label.array, hs.as_xyz(want)[None])
