"""AMOS: dataset.json lists the images, and the validation images are the split val."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medfed.errors import DataError

from ..hospital_folder import ZEROS, index, refused, unreadable, write_nifti
from .hospitals_of_each import amos


def change(folder: Path, **entries: object) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | entries))


def test_the_validation_list_is_the_split_val(tmp_path: Path) -> None:
    amos(tmp_path)
    listing = index(tmp_path)
    assert listing.layout == "AMOS"
    assert {case.id: case.split for case in listing.cases}["c0"] == "val"
    assert {case.split for case in listing.cases if case.id != "c0"} == {"train", "test"}
    assert [case.image for case in listing.cases if case.id == "c0"] == [
        (tmp_path / "imagesVa" / "c0.nii.gz",)
    ]
    assert listing.class_names == ("background", "tumour")
    assert listing.channels == ("MRI",)


@pytest.mark.parametrize("missing", ["image", "label"])
def test_a_listed_file_that_is_missing_costs_its_case(tmp_path: Path, missing: str) -> None:
    amos(tmp_path)
    (tmp_path / f"{missing}sTr" / "c1.nii.gz").unlink()
    reasons = unreadable(index(tmp_path))
    assert list(reasons) == ["c1"]
    assert f"dataset.json lists its {missing}, which is not there; restore it" in reasons["c1"]


@pytest.mark.parametrize("entries", [None, {"image": "a", "label": "b"}, ["a"], [{"image": "a"}]])
def test_a_list_without_images_and_labels_is_refused(tmp_path: Path, entries: object) -> None:
    amos(tmp_path)
    change(tmp_path, validation=entries)
    refused(lambda: index(tmp_path), DataError, "dataset.json does not list its images under 'validation'")


def test_a_path_out_of_the_folder_is_no_image_of_it(tmp_path: Path) -> None:
    amos(tmp_path / "site")
    write_nifti(tmp_path / "other.nii.gz", ZEROS)
    outside = {"image": "../other.nii.gz", "label": "../other.nii.gz"}
    change(tmp_path / "site", validation=[outside])
    assert "dataset.json lists its image, which is not there" in unreadable(index(tmp_path / "site"))["other"]
