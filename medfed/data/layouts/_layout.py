"""What every layout gives, and how names are read in each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medfed.data.index import Case
from medfed.data.splits import SPLITS


@dataclass(frozen=True)
class Found:
    """What one layout listed, before splits and checks."""

    layout: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


# What is said of a layout that can't tell a patient's visits apart from two patients.
NO_PATIENTS = "the layout names no patients: each case counts as a patient of its own"

NIFTI_ENDINGS = (".nii.gz", ".nii")


def stem(path: Path) -> str:
    """Return a file's name without its (double) ending."""
    for ending in NIFTI_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def is_nifti(path: Path) -> bool:
    """Whether a file is called as a NIfTI; hidden files (macOS writes `._x.nii.gz`) are not images."""
    return path.name.lower().endswith(NIFTI_ENDINGS) and not path.name.startswith(".") and path.is_file()


def visible(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted by name, without hidden entries."""
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name
    )


def split_folders(folder: Path) -> dict[str, Path]:
    """Return train, val and test where these are all the sub-folders there are."""
    found = {path.name.lower(): path for path in visible(folder) if path.is_dir()}
    return found if found and set(found) <= set(SPLITS) else {}
