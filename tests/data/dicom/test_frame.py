"""Enhanced objects: frames in any order, each with its own position, slope, echo, time and stack."""

from __future__ import annotations

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, assert_in_place, enhanced, expected_affine, write

from medfed.data.read import read
from medfed.errors import ImageError


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_shuffled_frames_with_slopes_of_their_own(tmp_path, modality):
    series = Series(orientation=hs.SAGITTAL, modality="MR")
    frames = [{"k": k, "slope": 0.5 - 0.05 * k, "intercept": -1000.0 + k} for k in (4, 1, 0, 5, 3, 2)]
    path = write(enhanced(series, frames, modality), tmp_path / "a.dcm")
    (volume,) = read(path)
    assert_in_place(volume, shape=(7, 5, 6))
    np.testing.assert_allclose(volume.affine_ras, expected_affine(series), atol=1e-5)
    assert volume.info.modality == modality


@pytest.mark.parametrize(
    "what, values",
    [
        ("echo", (4.6, 10.2)),
        ("time", (1, 2)),
        ("b", (0, 1000)),
        ("stack", (1, 2)),
        ("inversion", (100.0, 900.0)),
        ("flip", (3.0, 15.0)),
        ("kilovolt", (80.0, 140.0)),
    ],
)
def test_what_one_object_mixes_comes_apart(tmp_path, what, values):
    series = Series(modality="MR")
    frames = [
        {"k": k, what: v, "intercept": -1024.0 - 500 * (v != values[0])} for k in range(6) for v in values
    ]
    for frame in frames:  # stored as if the intercept were the common one, so that volumes differ by 500
        frame["slope"] = 0.5
    rng = np.random.default_rng(3)
    ds = enhanced(series, [frames[i] for i in rng.permutation(len(frames))])
    for group in ds.PerFrameFunctionalGroupsSequence:
        group.PixelValueTransformationSequence[0].RescaleIntercept = -1024.0
    volumes = read(write(ds, tmp_path / "a.dcm"))
    assert len(volumes) == 2
    assert_in_place(volumes[0], shape=(7, 5, 6))
    np.testing.assert_allclose(volumes[1].array - volumes[0].array, 500, atol=0.5)


def test_time_by_dimension_index_alone(tmp_path):
    series = Series(modality="MR")
    frames = [{"k": k} for k in range(6) for _ in range(2)]
    ds = enhanced(series, frames)
    ds.DimensionIndexSequence = hs.Items([])
    for pointer in (0x00209057, 0x00189074):
        item = hs.Dataset()
        item.DimensionIndexPointer = pointer
        ds.DimensionIndexSequence.append(item)
    for i, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        group.FrameContentSequence[0].DimensionIndexValues = [frames[i]["k"] + 1, i % 2 + 1]
    assert len(read(write(ds, tmp_path / "a.dcm"))) == 2


def test_a_shared_slope_serves_all_frames(tmp_path):
    series = Series(modality="MR")
    ds = enhanced(series, [{"k": k} for k in range(6)])
    for group in ds.PerFrameFunctionalGroupsSequence:
        values = group.PixelValueTransformationSequence
        del group.PixelValueTransformationSequence
    ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = values
    assert_in_place(read(write(ds, tmp_path / "a.dcm"))[0])


def test_frames_without_a_place_or_with_two_contents_are_refused(tmp_path):
    series = Series(modality="MR")
    ds = enhanced(series, [{"k": k} for k in range(6)])
    del ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    with pytest.raises(ImageError, match="1 of 6 images lack ImagePositionPatient"):
        read(write(ds, tmp_path / "a.dcm"))
    ds = enhanced(series, [{"k": k} for k in (0, 1, 2, 2, 3)])
    ds.PixelData = bytes(np.random.default_rng(0).integers(0, 99, len(ds.PixelData), np.uint8))
    with pytest.raises(ImageError, match=r"2 different images at one position \(35\.00 mm"):
        read(write(ds, tmp_path / "a.dcm"))
    ds = enhanced(series, [{"k": k} for k in (0, 1, 3, 4)])
    with pytest.raises(ImageError, match="1 slice is missing"):
        read(write(ds, tmp_path / "a.dcm"))


def test_one_frame_of_an_enhanced_object(tmp_path):
    ds = enhanced(Series(modality="MR"), [{"k": 3}])
    assert_in_place(read(write(ds, tmp_path / "a.dcm"))[0], shape=(7, 5, 1))
