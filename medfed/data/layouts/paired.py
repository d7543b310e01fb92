"""A folder of images beside one of labels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medfed.data.layouts._files import SPLIT_FOLDERS, in_split, is_image, split_folders, stem
from medfed.data.layouts._layout import NO_PATIENTS, CaseError, CaseListing, Layout, ListedCase
from medfed.data.layouts._roles import IMAGE_WORDS, LABEL_WORDS, is_label_word, is_role, shared_name
from medfed.data.layouts._survey import IMAGE_FORMATS, File, Survey
from medfed.errors import DataError, ImageError

# The least share of labels that must have an image of their name: chance names match in no number.
MIN_MATCHED = 0.5

_CHANNEL = re.compile(r"(.+)_(\d{4})")

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


def _files(survey: Survey, parent: tuple[str, ...], folder: str, roles: frozenset[str]) -> dict[_Key, File]:
    """Return the images below a folder by their keys.

    Raises:
        DataError: if two have the same key.
    """
    found: dict[_Key, File] = {}
    for file in survey.below(*parent, folder):
        if file.format in IMAGE_FORMATS:
            key = _key(file, len(parent) + 1, roles)
            if key in found:
                raise DataError(
                    "a folder holds two files of one name (as .nii and .nii.gz, or with and without a "
                    "suffix); keep one, or list the cases in cases.csv"
                )
            found[key] = file
    return found


def _keys(survey: Survey, parent: tuple[str, ...], folder: str, roles: frozenset[str]) -> set[_Key]:
    """Return the keys of the images below a folder."""
    files = survey.below(*parent, folder)
    return {_key(file, len(parent) + 1, roles) for file in files if file.format in IMAGE_FORMATS}


def _key(file: File, depth: int, roles: frozenset[str]) -> _Key:
    return (*file.parts[depth:-1], shared_name(stem(file.path), roles))


def _unnumbered(key: _Key) -> _Key:
    match = _CHANNEL.fullmatch(key[-1])
    return (*key[:-1], match[1]) if match else key


def _image_files(survey: Survey, pair: _Pair, folder: str) -> dict[_Key, tuple[Path, ...]]:
    """Return the files of each case in one folder of images: one, or its numbered channels in order."""
    files = _files(survey, pair.parent, folder, IMAGE_WORDS)
    labels = set(_files(survey, pair.parent, pair.label, LABEL_WORDS))
    found: dict[_Key, dict[int, Path]] = {}
    for key, file in files.items():
        match = _CHANNEL.fullmatch(key[-1])
        is_numbered = match is not None and key not in labels
        own = (*key[:-1], match[1]) if match is not None and is_numbered else key
        channels = found.setdefault(own, {})
        number = int(match[2]) if match is not None and is_numbered else 0
        if number in channels:
            raise CaseError("/".join(own), "it has two files for one channel; keep one")
        channels[number] = file.path
    count = max((len(channels) for channels in found.values()), default=1)
    for own, channels in found.items():
        if sorted(channels) != list(range(count)):
            raise CaseError(
                "/".join(own),
                f"it has {len(channels)} of {count} channels (_0000, _0001, ...) that other cases have; "
                "restore the missing file or remove the case",
                ImageError,
            )
    return {own: tuple(channels[number] for number in sorted(channels)) for own, channels in found.items()}


def _cases(survey: Survey, split: str, pair: _Pair) -> list[ListedCase]:
    labels = _files(survey, pair.parent, pair.label, LABEL_WORDS)
    by_folder = [_image_files(survey, pair, folder) for folder in pair.images]
    names = sorted({name for one in by_folder for name in one} | set(labels))
    cases = []
    for key in names:
        lacking = sum(key not in one for one in by_folder)
        if lacking == len(by_folder):
            raise CaseError(
                "/".join(key),
                "there is a label of this name and no image; restore the image or remove the label",
                ImageError,
            )
        if lacking:
            raise CaseError(
                "/".join(key),
                f"{lacking} of the {len(by_folder)} folders of images lack its file; each folder is a "
                "channel of every case; restore the file or remove the case",
                ImageError,
            )
        cases.append(
            _case(key, split, tuple(path for one in by_folder for path in one[key]), labels.get(key))
        )
    return cases


def _case(key: _Key, split: str, image: tuple[Path, ...], label: File | None) -> ListedCase:
    """Return a case; a folder between is that of a split (`images/train/x`) or of a patient."""
    inner = SPLIT_FOLDERS.get(key[0].lower(), "") if len(key) > 1 and not split else ""
    own = key[1:] if inner else key
    split = split or inner
    identity = in_split(split, "/".join(own))
    patient = own[0] if len(own) > 1 else identity
    return ListedCase(identity, patient, image, label.path if label else None, split=split)


def _names_patients(cases: list[ListedCase]) -> bool:
    return bool(cases) and all(case.patient != case.id for case in cases)
