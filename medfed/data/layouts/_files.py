"""How all layouts read the names of files and folders."""

from __future__ import annotations

from pathlib import Path

from medfed.data.dicom.file import is_dicom
from medfed.data.splits import SPLITS, UNASSIGNED

NIFTI_ENDINGS = (".nii.gz", ".nii")


def stem(path: Path) -> str:
    """Return a file's name without its (double) ending."""
    for ending in NIFTI_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a NIfTI; hidden files (macOS writes `._x.nii.gz`) are not images."""
    return path.name.lower().endswith(NIFTI_ENDINGS) and not path.name.startswith(".") and path.is_file()


def may_be_dicom(path: Path) -> bool:
    """Whether the file has DICOM's preamble; without one, the ending `.dcm` decides."""
    return is_dicom(path) or path.suffix.lower() == ".dcm"


def visible(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted by name, without hidden ones."""
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name
    )


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders directly below a folder, sorted by name."""
    return [path for path in visible(folder) if path.is_dir()]


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of train, val and test if these are all the sub-folders; else the folder itself."""
    named = {path.name.lower(): path for path in subfolders(folder)}
    return named if named and set(named) <= set(SPLITS) else {UNASSIGNED: folder}


def in_split(split: str, identity: str) -> str:
    """Return a case id that is unique over the splits: one file name may stand in train and in test."""
    return f"{split}/{identity}" if split else identity
