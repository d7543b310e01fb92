"""A tilted gantry and uneven slices, resampled onto an upright, even grid."""

from __future__ import annotations

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, assert_in_place, expected_affine, structure_set, write, write_series

from medfed.data.read import read, read_label
from medfed.errors import ImageError, LabelError


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


@pytest.mark.parametrize(
    ("drawn", "refused"),
    [((1, 2, 4), True), ((1, 2, 3, 4), False), ((1, 2), False), ((4, 5), False), ((1, 5), False)],
    ids=str,
)
def test_a_label_that_skips_an_interpolated_slice_is_refused(tmp_path, drawn, refused):
    series = Series(shape=(7, 12, 12))
    write_series(tmp_path / "mr", series)[3].unlink()
    (volume,) = read(tmp_path / "mr", uneven="resample")
    assert volume.info.interpolated == (3,)
    square = [(2, 2), (6, 2), (6, 6), (2, 6)]
    path = write(structure_set(series, {1: [(k, square) for k in drawn]}), tmp_path / "rt.dcm")
    if refused:
        with pytest.raises(LabelError, match=r"no voxel on slice 4, which was interpolated between two"):
            read_label(path, volume)
    else:
        (label,) = read_label(path, volume).array
        assert np.flatnonzero(label.any(axis=(0, 1))).tolist() == list(drawn)
