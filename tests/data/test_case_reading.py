"""A case's channels and label on one grid, and which refusal each fault of its files has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data.layouts.dicom_folders import put
from hard_series import Series

from medfed.data.case import Case
from medfed.data.case_reading import check_files, check_same_grid, moved_parts, naming, read_case, read_image
from medfed.data.refusals import ChannelCountError, ChannelGridError, MissingImageError, MissingLabelError
from medfed.data.settings import Images
from medfed.data.volume import Info, Volume
from medfed.errors import ImageError, LabelError

from .hospital_folder import MARK, write_nifti

TOKEN = "4f2a"
SETTINGS = Images(spacing_mm="native", patch=None)


def volume(shape=(10, 10, 10), spacing=1.0, shift=0.0, flags=()):
    affine = np.diag([spacing, 1.0, 1.0, 1.0])
    affine[0, 3] = shift
    return Volume(np.zeros((1, *shape), np.float32), affine, Info(flags=flags))


def case(folder: Path, *images: str, label: str | None = None, masks=()):
    sources = tuple(folder / name for name in images)
    own = None if label is None else folder / label
    return Case(
        id=MARK, token=TOKEN, patient=MARK, image=sources, label=own, split="train",
        masks=tuple((name, folder / file) for name, file in masks),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("other", "distance"),
    [
        # A twentieth of a voxel of 1 mm is allowed.
        (volume(shift=0.06), "0.06"),
        (volume(shape=(10, 10, 11)), "0.00"),
        # A spacing along X that is off by 0.006 mm is off by 0.06 mm at the far corner.
        (volume(spacing=1.006), "0.06"),
    ],
)
def test_channels_on_other_grids_are_refused_with_the_largest_distance(other, distance):
    with pytest.raises(
        ChannelGridError, match=rf"channel 2 lies on another grid .* up to {distance} mm apart"
    ):
        check_same_grid(volume(), other, 2)


@pytest.mark.parametrize("other", [volume(shift=0.04), volume(spacing=1.004)])
def test_less_than_a_twentieth_of_a_voxel_is_the_same_grid(other):
    check_same_grid(volume(), other, 2)


def test_channels_are_stacked_in_the_order_of_the_sources(tmp_path):
    for number, name in enumerate(("a", "b"), start=1):
        write_nifti(tmp_path / f"{name}.nii.gz", np.full((6, 5, 4), number, np.float32))
    image = read_image([tmp_path / "b.nii.gz", tmp_path / "a.nii.gz"])
    assert image.array.shape == (2, 6, 5, 4)
    assert image.array.mean(axis=(1, 2, 3)).tolist() == [2.0, 1.0]


def test_channels_of_two_modalities_are_not_taken_for_the_firsts(tmp_path):
    """What holds for CT, such as bins in HU, does not hold for the PET beside it."""
    put(tmp_path / "ct", Series(modality="CT"))
    put(tmp_path / "pt", Series(modality="MR"), Modality="PT")
    image = read_image([tmp_path / "ct", tmp_path / "pt"])
    assert image.info.modality == "CT+PT"
    assert read_image([tmp_path / "ct", tmp_path / "ct"]).info.modality == "CT"
    write_nifti(tmp_path / "a.nii.gz", np.ones((6, 5, 4), np.float32))
    assert read_image([tmp_path / "a.nii.gz"] * 2).info.modality == ""


def test_a_channel_on_another_grid_is_moved_only_if_the_study_says_so(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", np.ones((6, 5, 4), np.float32))
    write_nifti(tmp_path / "b.nii.gz", np.ones((6, 5, 5), np.float32))
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    with pytest.raises(ChannelGridError, match="channel 2 lies on another grid"):
        read_image(paths, SETTINGS)
    moved = read_image(paths, Images(spacing_mm="native", patch=None, resample_channels=True))
    assert moved.array.shape == (2, 6, 5, 4)
    assert moved_parts(moved, None) == ("channels",)


def test_parts_that_were_moved_are_named():
    label = volume(flags=("resampled",))
    assert moved_parts(volume(), None) == moved_parts(volume(), volume()) == ()
    assert moved_parts(volume(flags=("resampled_channels",)), label) == ("label", "channels")
    # An uneven stack that was resampled is still the grid of the case.
    assert moved_parts(volume(flags=("resampled",)), None) == ()


def test_missing_files_are_told_apart_and_not_named(tmp_path):
    (tmp_path / "a").touch()
    check_files(case(tmp_path, "a", label="a", masks=[("liver", "a")]))
    with pytest.raises(MissingImageError, match="its image is not there; correct its path") as error:
        check_files(case(tmp_path, "a", "gone", label="gone"))
    assert "gone" not in str(error.value)
    for labels in ({"label": "gone"}, {"masks": [("liver", "a"), ("tumour", "gone")]}):
        with pytest.raises(MissingLabelError, match="its label is not there; correct its path"):
            check_files(case(tmp_path, "a", **labels))


def test_a_refusal_names_the_case_by_token_and_hides_its_cause(tmp_path):
    with (
        pytest.raises(MissingImageError, match=f"^case {TOKEN}: its image is not there") as error,
        naming(case(tmp_path)),
    ):
        raise MissingImageError("its image is not there")
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_another_number_of_channels_than_the_studys_is_refused(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", np.zeros((6, 5, 4), np.float32))
    asked = Images(spacing_mm="native", patch=None, channels=2)
    with pytest.raises(ChannelCountError, match=r"the image has 1 channels, the study's data\.channels is 2"):
        read_case(case(tmp_path, "a.nii.gz"), asked, 2)
    image, label = read_case(case(tmp_path, "a.nii.gz"), None, 2)
    assert (image.array.shape, label) == ((1, 6, 5, 4), None)


def test_a_damaged_label_is_a_fault_of_the_label_and_not_of_the_image(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", np.zeros((6, 5, 4), np.float32))
    (tmp_path / "label.nii.gz").write_bytes(b"no image at all" * 90)
    with pytest.raises(LabelError, match=f"^case {TOKEN}: its label: "):
        read_case(case(tmp_path, "a.nii.gz", label="label.nii.gz"), SETTINGS, 2)
    with pytest.raises(ImageError, match=f"^case {TOKEN}: ") as error:
        read_case(case(tmp_path, "label.nii.gz"), SETTINGS, 2)
    assert not isinstance(error.value, LabelError)
