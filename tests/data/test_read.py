"""Any orientation, spacing, slope, tilt and file order: each voxel is at its true position in the patient."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, assert_in_place, expected_affine, write_series
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.data.read import read, read_label
from medfed.errors import ImageError

turns = st.tuples(*[st.floats(-180, 180) for _ in range(3)])
spacings = st.floats(0.3, 3.0).map(lambda x: round(x, 3))


def cosines(turn):
    from scipy.spatial.transform import Rotation

    return tuple(np.concatenate(Rotation.from_euler("xyz", turn, degrees=True).as_matrix().T[:2]).round(8))


@st.composite
def series(draw, tilted=True):
    turn = draw(turns)
    slide = draw(st.floats(-0.5, 0.5)) if tilted else 0.0
    orientation = cosines(turn)
    return Series(
        shape=(draw(st.integers(2, 6)), draw(st.integers(2, 6)), draw(st.integers(2, 6))),
        orientation=orientation,
        origin_mm=draw(st.tuples(*[st.floats(-300, 300).map(lambda x: round(x, 2)) for _ in range(3)])),
        spacing_mm=(draw(spacings), draw(spacings)),
        step_mm=draw(spacings),
        shift_mm=tuple(slide * np.asarray(orientation[3:])),
        modality=draw(st.sampled_from(["CT", "MR", "PT"])),
        slope=draw(st.sampled_from([0.25, 0.5, 1.0, 0.123])),
        intercept=draw(st.sampled_from([0.0, -1024.0, 0.5])),
        allocated=32,
    )


@given(series(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_each_voxel_lies_at_its_place(made, random):
    order = list(range(made.shape[0]))
    random.shuffle(order)
    with tempfile.TemporaryDirectory() as folder:
        hs.write_series(Path(folder), made, order=order)
        (volume,) = read(folder)
    assert_in_place(volume, slope=made.slope + 0.004, shape=made.shape[::-1])
    np.testing.assert_allclose(volume.affine_ras, expected_affine(made), atol=2e-5)


@given(series(tilted=False), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_each_frame_of_an_enhanced_object_lies_at_its_place(made, random):
    frames = [{"k": k, "slope": 0.5 + 0.1 * k} for k in range(made.shape[0])]
    random.shuffle(frames)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.dcm"
        made = Series(
            **{**vars(made), "modality": "MR", "allocated": 16, "intercept": -200.0, "origin_mm": (1, 2, 3)}
        )
        hs.write(hs.enhanced(made, frames), path)
        (volume,) = read(path)
    assert_in_place(volume, slope=1.1, shape=made.shape[::-1])


@given(series(tilted=False), st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3))
@settings(max_examples=30, deadline=None)
def test_each_voxel_of_a_label_lies_at_its_place(made, order, flips):
    import nibabel as nib

    with tempfile.TemporaryDirectory() as folder:
        hs.write_series(Path(folder) / "ct", made)
        (volume,) = read(Path(folder) / "ct")
        classes = np.arange(volume.array.size, dtype=np.uint8).reshape(volume.shape)
        image = nib.Nifti1Image(classes, volume.affine_ras).as_reoriented(np.stack([order, flips], axis=1))
        image.to_filename(Path(folder) / "label.nii")
        label = read_label(Path(folder) / "label.nii", volume)
        np.testing.assert_array_equal(label.array[0], classes)


def test_the_files_of_one_series_are_read_and_no_other(tmp_path: Path) -> None:
    ours, other = Series(), Series(shape=(4, 5, 7), step_mm=3.0)
    files = write_series(tmp_path, ours)
    write_series(tmp_path, other)
    (volume,) = read(files)
    assert_in_place(volume, shape=(7, 5, 6))
    assert len(read(tmp_path)) == 2
    (tmp_path / "empty.dcm").touch()
    with pytest.raises(ImageError, match="empty or no DICOM file; copy it again"):
        read([*files, tmp_path / "empty.dcm"])
