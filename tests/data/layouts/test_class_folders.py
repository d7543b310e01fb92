"""One folder per class, directly or below the splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medfed.errors import DataError

from ..hospital_folder import MARK, index, refused, write_nifti


def class_folders(folder: Path, *, parents: tuple[str, ...] = ("",)) -> None:
    for parent in parents:
        for name, count in (("healthy", 3), ("tumour", 2)):
            for i in range(count):
                write_nifti(
                    folder / parent / name / f"{MARK}{parent}{i}.nii.gz", np.zeros((4, 4, 4), np.float32)
                )


def test_a_folder_a_class(tmp_path: Path) -> None:
    class_folders(tmp_path)
    found = index(tmp_path)
    assert found.layout == "one folder per class"
    assert found.class_names == ("healthy", "tumour")
    assert [case.target for case in found.cases] == [0, 0, 0, 1, 1]


def test_a_folder_a_class_below_a_folder_a_split(tmp_path: Path) -> None:
    class_folders(tmp_path, parents=("train", "val", "test"))
    found = index(tmp_path)
    assert [(case.split, case.target) for case in found.cases].count(("val", 1)) == 2
    assert len(found.cases) == 15


def test_a_class_without_cases(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / f"{MARK}_unclear").mkdir()
    refused(lambda: index(tmp_path), DataError, "class 0 of 3", "has no image", "remove its folder")
