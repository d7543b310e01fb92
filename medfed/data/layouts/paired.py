"""A folder of images beside one of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from medfed.data.layouts._files import in_split, is_nifti, split_folders, stem, subfolders, visible
from medfed.data.layouts._layout import NO_PATIENTS, CaseError, CaseListing, Layout, ListedCase
from medfed.errors import DataError, ImageError

IMAGE_FOLDERS = frozenset({"image", "images", "imagestr", "img", "imgs"})
_SEGMENTATIONS = {"seg", "segs", "segmentation", "segmentations"}
LABEL_FOLDERS = frozenset({"label", "labels", "labelstr", "mask", "masks", "annotations"} | _SEGMENTATIONS)
# Suffixes behind the name that an image and its label share.
IMAGE_SUFFIXES = ("_0000", "_image", "_img")
LABEL_SUFFIXES = ("_seg", "_segmentation", "_mask", "_label", "-seg", "-mask", "-label")


class Paired(Layout, tag="paired", frozen=True):
    """A folder of images beside one of labels, by their names, directly or below train, val and test.

    A label has its image's name, perhaps with a suffix such as `_seg`.
    """

    title: ClassVar[str] = "images beside labels"
    evidence: ClassVar[str] = "a folder of images beside one of labels"
    order: ClassVar[int] = 40

    def recognises(self, folder: Path) -> bool:
        return all(_image_and_label_folder(parent) is not None for parent in split_folders(folder).values())

    def read(self, folder: Path) -> CaseListing:
        cases: list[ListedCase] = []
        for split, parent in split_folders(folder).items():
            pair = _image_and_label_folder(parent)
            assert pair is not None
            cases += _cases(split, _by_name(pair[0], IMAGE_SUFFIXES), _by_name(pair[1], LABEL_SUFFIXES))
        return CaseListing(self.title, tuple(cases), (NO_PATIENTS,))


def _image_and_label_folder(parent: Path) -> tuple[Path, Path] | None:
    folders = subfolders(parent)
    images = [path for path in folders if path.name.lower() in IMAGE_FOLDERS]
    labels = [path for path in folders if path.name.lower() in LABEL_FOLDERS]
    if len(images) != 1 or len(labels) != 1 or not any(is_nifti(path) for path in visible(images[0])):
        return None
    return images[0], labels[0]


def _cases(split: str, images: dict[str, Path], labels: dict[str, Path]) -> list[ListedCase]:
    for name in sorted(labels):
        if name not in images:
            raise CaseError(
                name,
                "there is a label of this name and no image; restore the image or remove the label",
                ImageError,
            )
    return [
        ListedCase(
            in_split(split, name), in_split(split, name), (images[name],), label=labels.get(name), split=split
        )
        for name in sorted(images)
    ]


def _by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the NIfTI files of a folder by their names without a suffix.

    Raises:
        DataError: if two have the same name.
    """
    files: dict[str, Path] = {}
    for path in visible(folder):
        if is_nifti(path):
            name = stem(path)
            name = next((name[: -len(end)] for end in suffixes if name.lower().endswith(end)), name)
            if name in files:
                raise DataError(
                    "a folder holds two files of one name (as .nii and .nii.gz, or with and without a "
                    "suffix); keep one, or list the cases in cases.csv"
                )
            files[name] = path
    return files
