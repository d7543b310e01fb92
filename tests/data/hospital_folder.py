"""A hospital's folder with a cases.csv, and what a refusal of it may say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medfed.data.case_reading import check_files, naming
from medfed.data.index import Index, index_folder
from medfed.data.settings import Images
from medfed.data.splits import case_token
from medfed.errors import DataError, ImageError

SECRET = b"a site's secret of some length"


SAMPLES = Path(__file__).parents[2] / "sample_data"


NATIVE = Images(spacing_mm="native", patch=None)


# Stands in every name, path and cell of the broken folders; no message may hold it.
MARK = "Meier"


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def folder_of(
    tmp_path: Path, rows: list[str], heading: str = "case,patient,image,label,target,split"
) -> Path:
    """Return a folder with three good pairs of files and a cases.csv of these rows."""
    folder = tmp_path / f"{MARK}_export"
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        write_nifti(folder / f"{MARK}_{name}.nii.gz", rng.normal(0, 1, (6, 5, 4)).astype(np.float32))
        label = np.zeros((6, 5, 4), np.uint8)
        label[2, 2, 2] = 1
        write_nifti(folder / f"{MARK}_{name}_label.nii.gz", label)
    (folder / "cases.csv").write_text("\n".join([heading, *rows]) + "\n", encoding="utf-8")
    return folder


def image_of(folder: Path, name: str = "b") -> Path:
    return folder / f"{MARK}_{name}.nii.gz"


def label_of(folder: Path, name: str = "b") -> Path:
    return folder / f"{MARK}_{name}_label.nii.gz"


def row(
    name: str, *, patient: str = "", image: str = "", label: str = "", target: str = "1", split: str = "train"
) -> str:
    image = image or f"{MARK}_{name}.nii.gz"
    label = label or f"{MARK}_{name}_label.nii.gz"
    return f"{MARK}-{name},{patient or MARK + name},{image},{label},{target},{split}"


def index(folder: Path) -> Index:
    return index_folder(folder, site_secret=SECRET)


def token(name: str) -> str:
    return case_token(SECRET, f"{MARK}-{name}")


def unreadable(found: Index) -> dict[str, str]:
    """Return why each case that cannot be read as the folder is will be refused, by its id without MARK."""
    told = {}
    for case in found.cases:
        try:
            with naming(case):
                check_files(case)
        except ImageError as error:
            told[case.id.replace(MARK, "")] = str(error).removeprefix(f"case {case.token}: ")
    assert not any(MARK.lower() in message.lower() or "case " in message[:5] for message in told.values())
    return told


def refused(make: Callable[[], object], kind: type[DataError], *words: str) -> None:
    with pytest.raises(kind, match=re.escape(words[0])) as caught:
        make()
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert MARK.lower() not in message.lower()
    assert ".nii" not in message
    # A chained error would print the reader's own words, which may hold a path.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


ZEROS = np.zeros((4, 4, 4), np.float32)
