"""Names of files and folders as all layouts read them: stems, splits and images."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.data.layouts._files import (
    image_folders,
    images_in,
    in_split,
    split_folders,
    stem,
    visible,
    without_ending,
)
from medfed.data.layouts._survey import Survey


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.nii.gz", "a"),
        ("a.b.NII.GZ", "a.b"),
        ("a.seg.nrrd", "a"),
        ("a.nrrd", "a"),
        ("a.PNG", "a"),
        ("1.2.840.dcm", "1.2.840"),
        ("a.csv", "a"),
        ("a.tar.gz", "a.tar"),
        ("a", "a"),
    ],
)
def test_a_stem_has_lost_an_image_s_double_ending(name: str, expected: str) -> None:
    assert stem(Path("folder.nii") / name) == expected


def test_the_first_ending_that_fits_is_cut() -> None:
    assert without_ending("a_Seg_label", ("_label", "_seg")) == "a_Seg"
    assert without_ending("a_SEG", ("_label", "_seg")) == "a"
    assert without_ending("a", ("_label",)) == "a"


def test_one_name_in_two_splits_is_two_cases() -> None:
    assert (in_split("train", "7"), in_split("test", "7"), in_split("", "7")) == ("train/7", "test/7", "7")


def surveyed(folder: Path, *names: str) -> Survey:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return Survey.of(folder)


def test_images_are_whole_images_directly_in_the_folder(tmp_path: Path) -> None:
    survey = surveyed(tmp_path, "a/2.mha", "a/1.nii.gz", "a/slice.dcm", "a/table.csv", "a/b/3.nii", "4.nii")
    assert [file.name for file in images_in(survey, "a")] == ["1.nii.gz", "2.mha"]
    assert images_in(survey, "nowhere") == ()
    assert image_folders(survey) == ("a",)
    assert image_folders(survey, "a") == ("b",)
    # One DICOM file may be a slice of many, but a folder of them holds images.
    assert image_folders(surveyed(tmp_path / "dicom", "c/slice.dcm", "d/table.csv")) == ("c",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Training/a.nii", "test/b.nii"), {"train": ("Training",), "test": ("test",)}),
        (("validation/a.nii", "notes/b.csv"), {"val": ("validation",)}),
        (("train/a.nii", "others/b.nii"), {"": ()}),  # a folder that is no split
        (("train/a.nii", "training/b.nii"), {"": ()}),  # two folders of one split
        (("train/a.nii", "b.nii"), {"": ()}),  # an image beside the splits
        (("notes.csv",), {"": ()}),
    ],
)
def test_folders_are_splits_only_if_they_hold_every_image(
    tmp_path: Path, names: tuple[str, ...], expected: dict[str, tuple[str, ...]]
) -> None:
    assert split_folders(surveyed(tmp_path, *names)) == expected


def test_hidden_entries_are_not_listed(tmp_path: Path) -> None:
    surveyed(tmp_path, "b.nii", ".hidden", "a/x")
    assert [path.name for path in visible(tmp_path)] == ["a", "b.nii"]
