"""Labels on their volume's grid: NIfTI masks, DICOM segmentations and structure sets."""

from __future__ import annotations

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, segmentation, structure_set, write, write_series

from medfed.data.read import read, read_label
from medfed.errors import ImageError, LabelError

OBLIQUE = (0.96, 0.28, 0.0, -0.168, 0.576, 0.8)  # 0.28^2 + 0.96^2 = 1 and the two are perpendicular


@pytest.fixture(params=[hs.AXIAL, hs.SAGITTAL, OBLIQUE], ids=["axial", "sagittal", "oblique"])
def series(request):
    return Series(shape=(6, 9, 11), orientation=request.param)


@pytest.fixture
def volume(tmp_path, series):
    write_series(tmp_path / "ct", series)
    return read(tmp_path / "ct")[0]


def blob(series, seed=0):
    return np.random.default_rng(seed).integers(0, 2, series.shape).astype(bool)  # slices, rows, columns


def as_xyz(planes):
    return planes.transpose(2, 1, 0)


def test_a_sparse_binary_segmentation_lands_on_its_slices(tmp_path, series, volume):
    masks = blob(series)
    frames = [(1, k, masks[k]) for k in (4, 1)] + [(3, 5, masks[5])]
    path = write(segmentation(series, frames), tmp_path / "seg.dcm")
    want = np.zeros(series.shape, np.uint8)
    want[4], want[1] = masks[4], masks[1]
    want[5] = 3 * masks[5]
    label = read_label(path, volume, classes=4)
    np.testing.assert_array_equal(label.array, as_xyz(want)[None])
    with pytest.raises(LabelError, match="values 3; the task has classes 0 to 1"):
        read_label(path, volume, classes=2)
    named = read_label(path, volume, classes=2, names={"segment 3": 1})
    np.testing.assert_array_equal(named.array, as_xyz(want == 3)[None])
    assert named.info.skipped == ("segment 1, which the given names omit",)


def test_a_cropped_segmentation_lands_at_its_corner(tmp_path, series, volume):
    mask = np.ones((3, 4), bool)
    path = write(segmentation(series, [(1, 2, mask)], corner=(4, 6)), tmp_path / "seg.dcm")
    want = np.zeros(series.shape, np.uint8)
    want[2, 4:7, 6:10] = 1
    np.testing.assert_array_equal(read_label(path, volume).array, as_xyz(want)[None])
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
    np.testing.assert_array_equal(read_label(path, volume).array, as_xyz(fractions >= 50)[None])
    path = write(segmentation(series, frames, kind="FRACTIONAL", most=99), tmp_path / "seg.dcm")
    with pytest.raises(LabelError, match="exceeds MaximumFractionalValue"):
        read_label(path, volume)


def test_overlapping_segments_get_a_channel_each(tmp_path, series, volume):
    one, two = blob(series, 1), blob(series, 2)
    frames = [(1, k, one[k]) for k in range(6)] + [(2, k, two[k]) for k in range(6)]
    path = write(segmentation(series, frames), tmp_path / "seg.dcm")
    label = read_label(path, volume, classes=3)
    np.testing.assert_array_equal(label.array, np.stack([as_xyz(one) * 1, as_xyz(two) * 2]))
    assert label.info.flags == ("overlap",)
    later = read_label(path, volume, overlap="later")
    np.testing.assert_array_equal(later.array[0], np.where(as_xyz(two), 2, as_xyz(one)))
    with pytest.raises(LabelError, match=f"{int((one & two).sum())} voxels belong to several"):
        read_label(path, volume, overlap="refuse")


def test_a_segmentation_of_other_slices_is_refused(tmp_path, series, volume):
    other = Series(
        shape=series.shape, orientation=series.orientation, origin_mm=series.position(0) + series.normal
    )
    path = write(segmentation(other, [(1, 0, blob(series)[0])]), tmp_path / "seg.dcm")
    with pytest.raises(LabelError, match=r"1.00 mm off"):
        read_label(path, volume)


def test_a_folder_with_one_segmentation(tmp_path, series, volume):
    (tmp_path / "seg").mkdir()
    write(segmentation(series, [(1, 0, blob(series)[0])]), tmp_path / "seg" / "a.dcm")
    (tmp_path / "seg" / "notes.txt").write_text("hello")
    assert read_label(tmp_path / "seg", volume).array.sum() == blob(series)[0].sum()
    write(segmentation(series, [(1, 0, blob(series)[0])]), tmp_path / "seg" / "b.dcm")
    with pytest.raises(LabelError, match="holds 2 segmentations"):
        read_label(tmp_path / "seg", volume)


def square(low, high):
    return [(low, low), (high, low), (high, high), (low, high)]


def test_structures_with_holes_and_keyholes(tmp_path, series, volume):
    hole = [(2, square(0.5, 7.5)), (2, square(2.5, 5.5)), (2, square(3.5, 4.5))]
    keyhole = [
        (
            4,
            [
                (0.5, 0.5),
                (7.5, 0.5),
                (7.5, 7.5),
                (2.5, 5.5),
                (5.5, 5.5),
                (5.5, 2.5),
                (2.5, 2.5),
                (2.5, 5.5),
                (7.5, 7.5),
                (0.5, 7.5),
            ],
        )
    ]
    path = write(structure_set(series, {1: hole, 2: keyhole}), tmp_path / "rt.dcm")
    want = np.zeros(series.shape, np.uint8)
    want[2, 1:8, 1:8] = 1
    want[2, 3:6, 3:6] = 0
    want[2, 4, 4] = 1
    want[4, 1:8, 1:8] = 2
    want[4, 3:6, 3:6] = 0
    label = read_label(path, volume, classes=3)
    np.testing.assert_array_equal(label.array, as_xyz(want)[None])


def test_a_contour_through_voxel_centres_keeps_its_area(tmp_path, series, volume):
    path = write(structure_set(series, {1: [(0, square(2, 6))]}), tmp_path / "rt.dcm")
    want = np.zeros(series.shape, np.uint8)
    want[0, 2:6, 2:6] = 1
    np.testing.assert_array_equal(read_label(path, volume).array, as_xyz(want)[None])


def test_a_disc_agrees_with_its_equation(tmp_path):
    series = Series(shape=(3, 40, 40), spacing_mm=(1.0, 1.0))
    write_series(tmp_path / "ct", series)
    (volume,) = read(tmp_path / "ct")
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    points = np.stack([19.3 + 12.2 * np.cos(angle), 20.1 + 12.2 * np.sin(angle)], axis=1)
    path = write(structure_set(series, {1: [(1, points)]}), tmp_path / "rt.dcm")
    c, r = np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    want = (c - 19.3) ** 2 + (r - 20.1) ** 2 < 12.2**2
    np.testing.assert_array_equal(read_label(path, volume).array[0, :, :, 1], want)


@pytest.mark.parametrize(
    "rois, match",
    [
        ({1: [(0, square(1, 5)), (0, square(3, 7))]}, "cross in a slice and share 4 voxels"),
        ({1: [(7, square(1, 5))]}, "5.0 mm beyond the image"),
        ({1: [(0.5, square(1, 5))]}, "between two slices, 1.25 mm"),
        ({5: [(0, square(1, 5))]}, "values 5; the task has classes 0 to 2"),
        ({1: [(0, [(1, 1), (2, 2)])]}, "2 points encloses nothing"),
        ({}, "no closed contour"),
    ],
)
def test_structures_that_do_not_fit_are_refused(tmp_path, series, volume, rois, match):
    path = write(structure_set(series, rois), tmp_path / "rt.dcm")
    with pytest.raises(LabelError, match=match):
        read_label(path, volume, classes=3)


def test_a_tilted_contour_is_refused(tmp_path, series, volume):
    ds = structure_set(series, {1: [(1, square(1, 5))]})
    contour = ds.ROIContourSequence[0].ContourSequence[0]
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    points[0] += 3 * series.normal  # one of its corners is 3 mm out of the plane
    contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
    with pytest.raises(LabelError, match=r"oblique to the image's slices: it spans 3\.00 mm across them"):
        read_label(write(ds, tmp_path / "rt.dcm"), volume)


def test_slices_without_a_contour_between_others_get_a_line(tmp_path, series, volume):
    ds = structure_set(series, {1: [(1, square(1, 5)), (4, square(1, 5))], 2: [(2, square(1, 5))]})
    label = read_label(write(ds, tmp_path / "rt.dcm"), volume)
    assert label.info.skipped == (
        "2 slices without a contour between those of structure 1: nothing is interpolated",
    )
    assert not label.array[..., [0, 3, 5]].any()


def test_a_label_is_not_read_as_an_image(tmp_path, series):
    path = write(segmentation(series, [(1, 0, blob(series)[0])]), tmp_path / "seg.dcm")
    with pytest.raises(ImageError, match="give it to read_label"):
        read(path)


def test_another_patients_label_is_refused_and_a_strange_frame_of_reference_flagged(tmp_path, series, volume):
    ds = segmentation(series, [(1, 0, blob(series)[0])])
    assert read_label(write(ds, tmp_path / "seg.dcm"), volume).info.flags == ()
    ds.FrameOfReferenceUID = "1.2.3"
    assert read_label(write(ds, tmp_path / "seg.dcm"), volume).info.flags == ("other_frame_of_reference",)
    item = hs.Dataset()
    item.SeriesInstanceUID = "1.2.4"
    ds.ReferencedSeriesSequence = hs.Items([item])
    with pytest.raises(LabelError, match="drawn on another image"):
        read_label(write(ds, tmp_path / "seg.dcm"), volume)
    item.SeriesInstanceUID = series.uids["series"]
    assert read_label(write(ds, tmp_path / "seg.dcm"), volume).info.flags == ("other_frame_of_reference",)
    ds.PatientID = "SOMEBODY ELSE"
    with pytest.raises(LabelError, match="another patient") as refusal:
        read_label(write(ds, tmp_path / "seg.dcm"), volume)
    assert "ELSE" not in str(refusal.value)
    assert "marks" not in repr(volume.info)


def test_a_label_map_segmentation(tmp_path, series, volume):
    planes = np.random.default_rng(0).integers(0, 3, series.shape)
    ds = segmentation(series, [(1, k, planes[k]) for k in range(6)], kind="LABELMAP")
    two = hs.Dataset()
    two.SegmentNumber, two.SegmentLabel = 2, "two"
    ds.SegmentSequence.append(two)
    path = write(ds, tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_label(path, volume, classes=3).array, as_xyz(planes)[None])


def test_highdicom_places_segments_likewise(tmp_path, series, volume):
    import highdicom as hd
    from pydicom.sr.codedict import codes

    sources = [hs.make_slice(series, k) for k in range(6)]
    for ds in sources:
        ds.StudyDate = ds.StudyTime = ds.StudyID = ds.AccessionNumber = ds.PatientSex = (
            ds.ReferringPhysicianName
        ) = ""
        ds.SeriesNumber, ds.PositionReferenceIndicator, ds.Laterality = 1, "", ""
    mask = blob(series)
    description = hd.seg.SegmentDescription(
        1, "one", codes.SCT.Organ, codes.SCT.Liver, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    seg = hd.seg.Segmentation(
        sources, mask, "BINARY", [description], hd.UID(), 2, hd.UID(), 1, "m", "m", "1", "1"
    )
    seg.save_as(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_label(tmp_path / "seg.dcm", volume).array, as_xyz(mask)[None])


def test_exclusive_contours_may_cross(tmp_path, series, volume):
    ds = structure_set(series, {1: [(2, square(0.5, 5.5)), (2, square(3.5, 7.5))]})
    for contour in ds.ROIContourSequence[0].ContourSequence:
        contour.ContourGeometricType = "CLOSEDPLANAR_XOR"
    want = np.zeros(series.shape, bool)
    want[2, 1:6, 1:6] ^= True
    want[2, 4:8, 4:8] ^= True
    np.testing.assert_array_equal(read_label(write(ds, tmp_path / "rt.dcm"), volume).array[0], as_xyz(want))


def test_a_contour_beside_the_image_is_refused(tmp_path, series, volume):
    path = write(structure_set(series, {1: [(2, square(50.5, 58.5))]}), tmp_path / "rt.dcm")
    with pytest.raises(LabelError, match=r"63\.0 mm beside the image"):  # (50.5 + 0.5 - 9 rows) x 1.5 mm
        read_label(path, volume)


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
    masks = blob(sagittal)
    path = write(segmentation(sagittal, [(1, x, masks[x]) for x in (5, 3, 7)]), tmp_path / "seg.dcm")
    want = np.zeros(volume.shape, bool)
    for x in (5, 3, 7):
        want[x] = masks[x].T
    np.testing.assert_array_equal(read_label(path, volume).array[0], want)


@pytest.mark.parametrize("order", ["deflated", "big endian"])
def test_single_bits_in_other_transfer_syntaxes(tmp_path, series, volume, order):
    from pydicom import uid

    masks = blob(series)
    ds = segmentation(series, [(1, k, masks[k]) for k in range(6)])
    ds.file_meta.TransferSyntaxUID = (
        uid.DeflatedExplicitVRLittleEndian if order == "deflated" else uid.ExplicitVRBigEndian
    )
    path = write(ds, tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_label(path, volume).array[0], as_xyz(masks))


def test_frames_deflated_each_by_itself(tmp_path, series, volume):
    import zlib

    from pydicom import uid
    from pydicom.encaps import encapsulate

    masks = blob(series)
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
    np.testing.assert_array_equal(read_label(path, volume).array[0], as_xyz(masks))
