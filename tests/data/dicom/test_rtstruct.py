"""DICOM structure sets on their volume's grid."""

from __future__ import annotations

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, structure_set, write, write_series

from medfed.data.read import read, read_label
from medfed.errors import LabelError


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
    np.testing.assert_array_equal(label.array, hs.as_xyz(want)[None])


def test_a_contour_through_voxel_centres_keeps_its_area(tmp_path, series, volume):
    path = write(structure_set(series, {1: [(0, square(2, 6))]}), tmp_path / "rt.dcm")
    want = np.zeros(series.shape, np.uint8)
    want[0, 2:6, 2:6] = 1
    np.testing.assert_array_equal(read_label(path, volume).array, hs.as_xyz(want)[None])


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
        ({1: [(0, [(1, 1), (2, 2)])]}, "no closed contour of three points or more"),
        ({}, "no closed contour"),
    ],
)
def test_structures_that_do_not_fit_are_refused(tmp_path, series, volume, rois, match):
    path = write(structure_set(series, rois), tmp_path / "rt.dcm")
    with pytest.raises(LabelError, match=match):
        read_label(path, volume, classes=3)


@pytest.mark.parametrize("points", [[(1, 1)], [(1, 1), (2, 2)]])
def test_a_contour_that_encloses_nothing_is_left_out_and_told(tmp_path, series, volume, points):
    ds = structure_set(series, {1: [(1, square(1, 5)), (2, points)], 2: [(3, square(2, 6))]})
    label = read_label(write(ds, tmp_path / "rt.dcm"), volume, classes=3)
    want = np.zeros(series.shape, np.uint8)
    want[1, 1:5, 1:5], want[3, 2:6, 2:6] = 1, 2
    np.testing.assert_array_equal(label.array, hs.as_xyz(want)[None])
    assert label.info.skipped == (
        f"a closed contour of {len(points)} points of structure 1: it encloses nothing",
    )


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


def test_exclusive_contours_may_cross(tmp_path, series, volume):
    ds = structure_set(series, {1: [(2, square(0.5, 5.5)), (2, square(3.5, 7.5))]})
    for contour in ds.ROIContourSequence[0].ContourSequence:
        contour.ContourGeometricType = "CLOSEDPLANAR_XOR"
    want = np.zeros(series.shape, bool)
    want[2, 1:6, 1:6] ^= True
    want[2, 4:8, 4:8] ^= True
    np.testing.assert_array_equal(
        read_label(write(ds, tmp_path / "rt.dcm"), volume).array[0], hs.as_xyz(want)
    )


def test_a_contour_beside_the_image_is_refused(tmp_path, series, volume):
    path = write(structure_set(series, {1: [(2, square(50.5, 58.5))]}), tmp_path / "rt.dcm")
    with pytest.raises(LabelError, match=r"63\.0 mm beside the image"):  # (50.5 + 0.5 - 9 rows) x 1.5 mm
        read_label(path, volume)
