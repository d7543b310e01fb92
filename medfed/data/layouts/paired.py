"""A folder of images beside one of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medfed.data.index import Case
from medfed.data.layouts._layout import NO_PATIENTS, Found, is_nifti, split_folders, stem, visible
from medfed.data.splits import UNASSIGNED, case_token
from medfed.errors import DataError, ImageError

IMAGE_FOLDERS = frozenset(("image", "images", "imagestr", "img", "imgs"))
LABEL_FOLDERS = frozenset(
    (
        "label",
        "labels",
        "labelstr",
        "mask",
        "masks",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "annotations",
    )
)
# What is put behind the name that an image and its label share.
IMAGE_SUFFIXES = ("_0000", "_image", "_img")
LABEL_SUFFIXES = ("_seg", "_segmentation", "_mask", "_label", "-seg", "-mask", "-label")


def is_paired(folder: Path) -> bool:
    """Whether there is one folder of images beside one of labels, by their names, directly
    or below the splits.
    """
    parents = split_folders(folder) or {UNASSIGNED: folder}
    return all(_image_and_label_folder(parent) is not None for parent in parents.values())


def _image_and_label_folder(parent: Path) -> tuple[Path, Path] | None:
    folders = [path for path in visible(parent) if path.is_dir()]
    images = [path for path in folders if path.name.lower() in IMAGE_FOLDERS]
    labels = [path for path in folders if path.name.lower() in LABEL_FOLDERS]
    if len(images) != 1 or len(labels) != 1 or not any(is_nifti(path) for path in visible(images[0])):
        return None
    return images[0], labels[0]


def paired(folder: Path, site_secret: bytes) -> Found:
    """List the images and the label of each, which has its name, perhaps with a suffix such as `_seg`."""
    cases = []
    for split, parent in (split_folders(folder) or {UNASSIGNED: folder}).items():
        found = _image_and_label_folder(parent)
        assert found is not None
        images, labels = (_by_name(*one) for one in zip(found, (IMAGE_SUFFIXES, LABEL_SUFFIXES), strict=True))
        for name in sorted(labels):
            if name not in images:
                token = case_token(site_secret, name)
                raise ImageError(
                    f"case {token}: there is a label of this name and no image; restore the image or remove the label"
                )
        for name in sorted(images):
            identity = f"{split}/{name}" if split else name
            cases.append(
                Case(
                    id=identity,
                    patient=identity,
                    token=case_token(site_secret, identity),
                    image=(images[name],),
                    label=labels.get(name),
                    split=split,
                )
            )
    return Found("images beside labels", tuple(cases), (NO_PATIENTS,))


def _by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the NIfTI files of a folder by their names without a suffix.

    Raises:
        DataError: if two have one name.
    """
    found: dict[str, Path] = {}
    for path in visible(folder):
        if is_nifti(path):
            name = stem(path)
            name = next((name[: -len(end)] for end in suffixes if name.lower().endswith(end)), name)
            if name in found:
                raise DataError(
                    "a folder holds two files of one name (as .nii and .nii.gz, or with and without a suffix); keep one, "
                    "or list the cases in cases.csv"
                )
            found[name] = path
    return found
