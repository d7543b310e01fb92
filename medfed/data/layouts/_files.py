"""How all layouts read the names of files and folders."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from medfed.data.layouts._survey import IMAGE_FORMATS, File, Survey
from medfed.data.splits import UNASSIGNED

# Endings of images, the longest first; a stem is what stands before one.
ENDINGS = (
    ".seg.nrrd",
    ".nii.gz",
    ".nii",
    ".mha",
    ".mhd",
    ".nrrd",
    ".nhdr",
    ".dcm",
    ".png",
    ".jpeg",
    ".jpg",
    ".tiff",
    ".tif",
)

# The folders of splits, in the words that published data sets use.
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def composed(name: str) -> str:
    """Return a name with each letter and its accents as one character.

    A Mac and what copied from it write `u` and two dots where others write `ü`: the same name to a person.
    """
    return unicodedata.normalize("NFC", name)


def stem(path: Path) -> str:
    """Return a file's name without its (double) ending, composed."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return composed(path.name[: -len(ending)])
    return composed(path.stem)


def visible(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted by name, without hidden ones."""
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name
    )


def is_image(file: File) -> bool:
    """Whether a file holds a whole image; a DICOM file may be one slice of many, so it is none here."""
    return file.format in IMAGE_FORMATS and file.format != "dicom"


def images_in(survey: Survey, *parts: str) -> tuple[File, ...]:
    """Return the images that lie directly in a folder, in order."""
    return tuple(file for file in survey.folders.get(parts, ()) if is_image(file))


def image_folders(survey: Survey, *parts: str) -> tuple[str, ...]:
    """Return the names of the folders directly below a folder that hold images at any depth, sorted."""
    depth = len(parts)
    names = {file.parts[depth] for file in survey.below(*parts) if _is_deeper(file, depth)}
    return tuple(sorted(names))


def split_folders(survey: Survey) -> dict[str, tuple[str, ...]]:
    """Return the folders of train, val and test by split if these hold all images, else the folder."""
    names = image_folders(survey)
    splits = [SPLIT_FOLDERS.get(name.lower()) for name in names]
    loose = any(is_image(file) for file in survey.folders.get((), ()))
    if not names or loose or None in splits or len(set(splits)) < len(splits):
        return {UNASSIGNED: ()}
    return {str(split): (name,) for split, name in zip(splits, names, strict=True)}


def in_split(split: str, identity: str) -> str:
    """Return a case id that is unique over the splits: one file name may stand in train and in test."""
    return f"{split}/{identity}" if split else identity


def without_ending(name: str, endings: Sequence[str]) -> str:
    """Return a name without the first of these endings that it has."""
    return next((name[: -len(end)] for end in endings if name.lower().endswith(end)), name)


def paths(files: Iterable[File]) -> tuple[Path, ...]:
    """Return the paths of files."""
    return tuple(file.path for file in files)


def _is_deeper(file: File, depth: int) -> bool:
    return len(file.parts) > depth + 1 and file.format in IMAGE_FORMATS
