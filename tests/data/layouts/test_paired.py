"""A folder of images beside one of labels."""

from __future__ import annotations

import numpy as np

from medfed.data.index import index_folder

from ..hospital_folder import SECRET, unreadable, write_nifti


def test_images_beside_labels_are_pairs_and_not_two_classes(tmp_path):
    for name, folder in (("a_0000", "images"), ("a_seg", "masks"), ("b", "images")):
        path = tmp_path / folder / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    index = index_folder(tmp_path, site_secret=SECRET)
    assert index.layout == "images beside labels"
    assert [(case.id, case.label is not None, case.target) for case in index.cases] == [
        ("a", True, None),
        ("b", False, None),
    ]
    (tmp_path / "masks" / "c.nii").touch()
    refusals = unreadable(index_folder(tmp_path, site_secret=SECRET))
    assert list(refusals) == ["c"]
    assert "a label of this name and no image" in refusals["c"]
    (tmp_path / "masks" / "c.nii").rename(tmp_path / "masks" / "a.nii")
    refusals = unreadable(index_folder(tmp_path, site_secret=SECRET))
    assert refusals["a"].startswith("it has several files for its label (as .nii and .nii.gz")
    (tmp_path / "images" / "b.nii").touch()
    refusals = unreadable(index_folder(tmp_path, site_secret=SECRET))
    assert refusals["b"].startswith("it has several files for its image (as .nii and .nii.gz")


def test_images_beside_labels_below_the_splits(tmp_path):
    for split in ("train", "test"):
        for folder in ("images", "labels"):
            (tmp_path / split / folder).mkdir(parents=True)
            (tmp_path / split / folder / "a.nii.gz").touch()
    index = index_folder(tmp_path, site_secret=SECRET)
    assert sorted((case.id, case.split) for case in index.cases) == [("test/a", "test"), ("train/a", "train")]


def test_an_accent_of_a_mac_is_the_accent_of_everyone_else(tmp_path):
    """`u` with a combining diaeresis and `\u00fc` are one letter: labels drawn on a Mac have their images."""
    for n in range(4):
        write_nifti(tmp_path / f"images/M\u00fcller{n}/s.nii.gz", np.zeros((3, 3, 3), np.uint8))
        write_nifti(tmp_path / f"labels/Mu\u0308ller{n}/s.nii.gz", np.zeros((3, 3, 3), np.uint8))
        write_nifti(tmp_path / f"images/J\u00f6rg{n}.nii.gz", np.zeros((3, 3, 3), np.uint8))
        write_nifti(tmp_path / f"labels/Jo\u0308rg{n}_seg.nii.gz", np.zeros((3, 3, 3), np.uint8))
    index = index_folder(tmp_path, site_secret=SECRET)
    assert len(index.cases) == 8
    assert all(case.label is not None and () not in case.image for case in index.cases)
