"""One folder of masks per structure: the structures are called as their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.data.layouts import parse_layout
from medfed.data.layouts._survey import Survey
from medfed.data.layouts.structure_folders import StructureFolders
from medfed.errors import DataError

from ..hospital_folder import ZEROS, write_nifti


def folder_of(base: Path, *files: str) -> Path:
    for name in files:
        write_nifti(base / f"{name}.nii.gz", ZEROS)
    return base


def cases_of(base: Path) -> dict[str, tuple[str, ...]]:
    """Return the structures of each case that has an image, by the case's name."""
    listing = StructureFolders().read(Survey.of(base))
    assert all(case.image for case in listing.cases)
    return {case.id: tuple(name for name, _ in case.masks) for case in listing.cases}


def test_an_image_has_the_structures_whose_folders_hold_a_mask_of_its_name(tmp_path: Path) -> None:
    base = folder_of(
        tmp_path, "images/a", "images/b", "images/c", "labels/liver/a", "labels/tumour/a", "labels/liver/b"
    )
    assert cases_of(base) == {"a": ("liver", "tumour"), "b": ("liver",), "c": ()}


def test_a_role_or_the_structures_own_name_may_end_a_masks_name(tmp_path: Path) -> None:
    base = folder_of(tmp_path, "ct/a_ct", "masks/liver/a_liver", "masks/spleen/a_mask")
    assert cases_of(base) == {"a": ("liver", "spleen")}


def test_a_mask_without_its_image_is_a_case_without_one(tmp_path: Path) -> None:
    base = folder_of(tmp_path, "images/a", "labels/liver/a", "labels/liver/b")
    images = {case.id: case.image for case in StructureFolders().read(Survey.of(base)).cases}
    assert images == {"a": (base / "images" / "a.nii.gz",), "b": ((),)}


def test_it_is_recognised_if_half_of_the_cases_masks_have_an_image(tmp_path: Path) -> None:
    half = folder_of(tmp_path / "half", "images/a", "labels/liver/a", "labels/liver/b")
    assert StructureFolders().evidence(Survey.of(half)) == (
        "1 folders in a folder of labels hold masks named as 1 images"
    )
    fewer = folder_of(tmp_path / "fewer", "images/a", *(f"labels/liver/{name}" for name in "abc"))
    assert StructureFolders().evidence(Survey.of(fewer)) is None
    beside = folder_of(tmp_path / "beside", "images/a", "labels/a", "labels/liver/a")
    assert StructureFolders().evidence(Survey.of(beside)) is None


def test_a_folder_of_another_kind_is_refused_where_the_layout_is_said(tmp_path: Path) -> None:
    layout = parse_layout("structure_folders")
    with pytest.raises(DataError, match="no folder of images beside a folder of labels with one folder per"):
        layout.read(Survey.of(folder_of(tmp_path, "images/a", "labels/a")))
