"""A folder of images beside one of labels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medfed.data.case import Fault, ImageSource
from medfed.data.layouts._files import SPLIT_FOLDERS, composed, in_split, is_image, split_folders, stem
from medfed.data.layouts._layout import NO_PATIENTS, CaseListing, Layout, ListedCase
from medfed.data.layouts._numbered_channels import in_order, several_labels, split_number, usual_count
from medfed.data.layouts._roles import IMAGE_WORDS, LABEL_WORDS, is_label_word, is_role, shared_name
from medfed.data.layouts._survey import IMAGE_FORMATS, File, Survey
from medfed.errors import DataError

# The least share of labels that must have an image of their name: chance names match in no number.
MIN_MATCHED = 0.5

# A file's key within its folder: the folders between, and its name without role and ending.
_Key = tuple[str, ...]


@dataclass(frozen=True, repr=False)
class _Pair:
    """The folders of images (one per channel, by name) and that of labels, below one parent."""

    parent: tuple[str, ...]
    images: tuple[str, ...]
    label: str


class Paired(Layout, tag="paired", frozen=True):
    """A folder of images beside one of labels, by the names of their files, directly or below the splits.

    A label has its image's name, perhaps with a word such as `_seg` or `label` around it. Several folders of
    images (`t1`, `flair`) or numbered files (`x_0000`, `x_0001`) are the channels of one case.
    """

    title: ClassVar[str] = "images beside labels"
    needs: ClassVar[str] = "images/x beside labels/x (or masks, seg, ground_truth), with names that match"
    order: ClassVar[int] = 50

    def evidence(self, survey: Survey) -> str | None:
        matched = labels = 0
        for parent in split_folders(survey).values():
            pair = _find_pair(survey, parent)
            if pair is None:
                return None
            names = _keys(survey, pair.parent, pair.label, LABEL_WORDS)
            images = [_keys(survey, pair.parent, folder, IMAGE_WORDS) for folder in pair.images]
            named = [one | set(map(_unnumbered, one)) for one in images]
            both = {key for key in names if all(key in one for one in named)}
            matched, labels = matched + len(both), labels + len(names)
        if not labels or matched < MIN_MATCHED * labels:
            return None
        return f"{matched} of {labels} labels in a folder of labels have an image of their name beside it"

    def read(self, survey: Survey) -> CaseListing:
        cases: list[ListedCase] = []
        channels: tuple[str, ...] = ()
        for split, parent in split_folders(survey).items():
            pair = _find_pair(survey, parent)
            if pair is None:
                raise DataError(
                    f"the site's data folder ({survey.describe()}) has no folder of images beside one of "
                    "labels; name them `images` and `labels`, or say with `layout: {kind: pattern, ...}` "
                    "where they are"
                )
            channels = pair.images if len(pair.images) > 1 else ()
            cases += _cases(survey, split, pair)
        return CaseListing(
            self.title, tuple(cases), () if _names_patients(cases) else (NO_PATIENTS,), channels=channels
        )


def _find_pair(survey: Survey, parent: tuple[str, ...]) -> _Pair | None:
    """Return the folders of images and of labels below a parent; None if it is not clear which these are."""
    folders = [
        name
        for name in survey.subfolders(*parent)
        if any(file.format in IMAGE_FORMATS for file in survey.below(*parent, name))
    ]
    labels = [name for name in folders if is_label_word(name)]
    others = tuple(name for name in folders if name not in labels)
    images = tuple(name for name in others if is_role(name)) or others
    if len(labels) != 1 or not images or any(is_image(file) for file in survey.folders.get(parent, ())):
        return None
    return _Pair(parent, images, labels[0])


def _files(
    survey: Survey, parent: tuple[str, ...], folder: str, roles: frozenset[str]
) -> dict[_Key, tuple[Path, ...]]:
    """Return the images below a folder by their keys; several of one key are a fault of their case."""
    found: dict[_Key, tuple[Path, ...]] = {}
    for file in survey.below(*parent, folder):
        if file.format in IMAGE_FORMATS:
            key = _key(file, len(parent) + 1, roles)
            found[key] = (*found.get(key, ()), file.path)
    return found


def _keys(survey: Survey, parent: tuple[str, ...], folder: str, roles: frozenset[str]) -> set[_Key]:
    """Return the keys of the images below a folder."""
    files = survey.below(*parent, folder)
    return {_key(file, len(parent) + 1, roles) for file in files if file.format in IMAGE_FORMATS}


def _key(file: File, depth: int, roles: frozenset[str]) -> _Key:
    return (*map(composed, file.parts[depth:-1]), shared_name(stem(file.path), roles))


def _unnumbered(key: _Key) -> _Key:
    split = split_number(key[-1])
    return (*key[:-1], split[0]) if split else key


def _image_files(
    survey: Survey, pair: _Pair, folder: str, labels: Collection[_Key]
) -> dict[_Key, dict[int, tuple[Path, ...]]]:
    """Return the files of each case in one folder of images, by channel: one, or numbered ones."""
    found: dict[_Key, dict[int, tuple[Path, ...]]] = {}
    for key, files in _files(survey, pair.parent, folder, IMAGE_WORDS).items():
        split = split_number(key[-1]) if key not in labels else None
        own, number = ((*key[:-1], split[0]), split[1]) if split else (key, 0)
        channels = found.setdefault(own, {})
        channels[number] = (*channels.get(number, ()), *files)
    return found


def _cases(survey: Survey, split: str, pair: _Pair) -> list[ListedCase]:
    """Return a case for each name that an image or a label has; () stands for an image that it lacks."""
    labels = _files(survey, pair.parent, pair.label, LABEL_WORDS)
    by_folder = [_image_files(survey, pair, folder, labels.keys()) for folder in pair.images]
    counts = [usual_count(one.values()) for one in by_folder]
    cases = []
    for key in sorted({name for one in by_folder for name in one} | set(labels)):
        found = [in_order(one.get(key, {}), count) for one, count in zip(by_folder, counts, strict=True)]
        images = tuple(image for of_folder, _ in found for image in of_folder)
        fault = next((fault for _, fault in found if fault is not None), None)
        cases.append(_case(key, split, images, labels.get(key, ()), fault))
    return cases


def _case(
    key: _Key, split: str, image: tuple[ImageSource, ...], labels: tuple[Path, ...], fault: Fault | None
) -> ListedCase:
    """Return a case; a folder between is that of a split (`images/train/x`) or of a patient."""
    inner = SPLIT_FOLDERS.get(key[0].lower(), "") if len(key) > 1 and not split else ""
    own = key[1:] if inner else key
    split = split or inner
    identity = in_split(split, "/".join(own))
    patient = own[0] if len(own) > 1 else identity
    fault, label = fault or several_labels(labels), labels[0] if labels else None
    return ListedCase(identity, patient, image, label, split=split, fault=fault)


def _names_patients(cases: list[ListedCase]) -> bool:
    return bool(cases) and all(case.patient != case.id for case in cases)
