"""A folder of images beside one folder of masks per structure: labels/liver/x, labels/tumour/x."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from medfed.data.layouts._files import image_folders, images_in, in_split, split_folders, stem
from medfed.data.layouts._layout import NO_PATIENTS, CaseListing, Layout, ListedCase
from medfed.data.layouts._roles import IMAGE_WORDS, LABEL_WORDS, is_label_word, is_role, shared_name
from medfed.data.layouts._survey import File, Survey
from medfed.errors import DataError

# The least share of masks that must have an image of their name.
MIN_MATCHED = 0.5

_Masks = dict[str, tuple[tuple[str, Path], ...]]


class StructureFolders(Layout, tag="structure_folders", frozen=True):
    """A folder of images beside one of labels, which has a folder of masks for each structure.

    A mask has its image's name; an image that lacks a structure's mask has none of it. Each structure is
    called as its folder.
    """

    title: ClassVar[str] = "one folder of masks per structure"
    needs: ClassVar[str] = "images/x beside labels/liver/x and labels/tumour/x, with names that match"
    order: ClassVar[int] = 60

    def evidence(self, survey: Survey) -> str | None:
        matched = total = structures = 0
        for parent in split_folders(survey).values():
            pair = _find_pair(survey, parent)
            if pair is None:
                return None
            images, masks = _images(survey, pair[0]), _masks(survey, pair[1])
            matched, total = matched + len(set(masks) & set(images)), total + len(masks)
            structures = max(structures, len(image_folders(survey, *pair[1])))
        if not total or matched < MIN_MATCHED * total:
            return None
        return f"{structures} folders in a folder of labels hold masks named as {matched} images"

    def read(self, survey: Survey) -> CaseListing:
        cases: list[ListedCase] = []
        for split, parent in split_folders(survey).items():
            pair = _find_pair(survey, parent)
            if pair is None:
                raise DataError(
                    f"the site's data folder ({survey.describe()}) has no folder of images beside a folder "
                    "of labels with one folder per structure"
                )
            images, masks = _images(survey, pair[0]), _masks(survey, pair[1])
            for name in sorted(set(masks) | set(images)):
                identity = in_split(split, name)
                image = images[name].path if name in images else ()
                cases.append(ListedCase(identity, identity, (image,), split=split, masks=masks.get(name, ())))
        return CaseListing(self.title, tuple(cases), (NO_PATIENTS,))


def _find_pair(survey: Survey, parent: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the folder of images and that of labels, whose masks lie one folder deeper."""
    names = image_folders(survey, *parent)
    labels = [name for name in names if is_label_word(name)]
    others = [name for name in names if name not in labels]
    images = [name for name in others if is_role(name)] or others
    if len(labels) != 1 or len(images) != 1 or images_in(survey, *parent, labels[0]):
        return None
    return (*parent, images[0]), (*parent, labels[0])


def _images(survey: Survey, folder: tuple[str, ...]) -> dict[str, File]:
    return {shared_name(stem(file.path), IMAGE_WORDS): file for file in images_in(survey, *folder)}


def _masks(survey: Survey, folder: tuple[str, ...]) -> _Masks:
    """Return the masks of each case by its name, as structure and file."""
    found: _Masks = {}
    for structure in image_folders(survey, *folder):
        roles = LABEL_WORDS | {structure.lower()}
        for file in images_in(survey, *folder, structure):
            name = shared_name(stem(file.path), roles)
            found[name] = (*found.get(name, ()), (structure, file.path))
    return found
