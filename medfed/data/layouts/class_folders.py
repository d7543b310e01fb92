"""One folder per class, as image classification often has it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from medfed.data.layouts._class_words import is_class_name
from medfed.data.layouts._files import images_in, in_split, split_folders, stem
from medfed.data.layouts._layout import NO_PATIENTS, CaseListing, Layout, ListedCase
from medfed.data.layouts._roles import IMAGE_WORDS, LABEL_WORDS, is_label_word, is_role, plain, shared_name
from medfed.data.layouts._survey import IMAGE_FORMATS, File, Survey
from medfed.errors import DataError

# Folders of patients often hold a few files each; folders of classes hold many.
CASES_PER_CLASS = 10
SEVERAL = 4

# The largest share of files whose name other folders have, too: patients' folders repeat the same names.
MAX_SHARED = 0.1

# Words for labels that are findings, too: images in such a folder may show one.
FINDINGS = frozenset({"lesion", "lesions"})

_DATE = re.compile(r"(19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d")


class ClassFolders(Layout, tag="class_folders", frozen=True):
    """One folder of images per class, directly or below train, val and test.

    Classes count from 0 in the order of their folders' names. The folder is taken for this only where the
    names of its sub-folders say findings (`_class_words.py`) and their files look like different patients';
    else `layout: class_folders` says so, also for folders of DICOM series, each in a folder of its own or a
    file of its own.
    """

    title: ClassVar[str] = "one folder per class"
    needs: ClassVar[str] = (
        f"CLASS/x, at least {SEVERAL} images per class with names of their own, and classes called by words "
        "for findings, such as benign and malignant (folders of patients look alike, and are never classes)"
    )
    order: ClassVar[int] = 80

    def evidence(self, survey: Survey) -> str | None:
        splits = [_classes(survey, parent, given=False) for parent in split_folders(survey).values()]
        names = {name for classes in splits for name in classes}
        if len(names) < 2 or any(
            _has_other_images(survey, parent) for parent in split_folders(survey).values()
        ):
            return None
        if any((is_label_word(name) and plain(name) not in FINDINGS) or is_role(name) for name in names):
            return None
        if not all(map(is_class_name, names)):
            return None
        if any(not _look_like_classes(classes) or _hold_masks(classes) for classes in splits):
            return None
        repeated = len(splits) > 1 and all(set(classes) == names for classes in splits)
        counts = Counter({name: sum(len(one.get(name, ())) for one in splits) for name in names})
        many = min(counts.values()) >= SEVERAL or counts.total() >= CASES_PER_CLASS * len(names)
        if not many and not repeated:
            return None
        return f"{counts.total()} images with names of their own in {len(names)} folders named after findings"

    def read(self, survey: Survey) -> CaseListing:
        by_split = {
            split: _classes(survey, parent, given=True) for split, parent in split_folders(survey).items()
        }
        names = sorted({name for classes in by_split.values() for name in classes})
        if len(names) < 2:
            raise DataError(
                f"the site's data folder ({survey.describe()}) has {len(names)} folders with images, and a "
                "classifier needs at least two classes, one folder each"
            )
        cases = [
            case
            for target, name in enumerate(names)
            for split, classes in by_split.items()
            for case in _cases(classes.get(name, ()), split, name, target)
        ]
        return CaseListing(self.title, tuple(cases), (NO_PATIENTS,), tuple(names))


def _classes(survey: Survey, parent: tuple[str, ...], *, given: bool) -> dict[str, tuple[File, ...]]:
    """Return the images of each folder below a parent; of DICOM only if the layout was given."""
    if not given:
        folders = {name: images_in(survey, *parent, name) for name in survey.subfolders(*parent)}
    else:
        folders = {
            name: tuple(file for file in survey.below(*parent, name) if file.format in IMAGE_FORMATS)
            for name in survey.subfolders(*parent)
        }
    return {name: files for name, files in folders.items() if files}


def _has_other_images(survey: Survey, parent: tuple[str, ...]) -> bool:
    """Whether images lie beside the folders of classes, or deeper than these."""
    depth = len(parent) + 2
    return any(
        file.format in IMAGE_FORMATS and (len(file.parts) != depth or file.format == "dicom")
        for file in (survey.below(*parent) if parent else survey.files)
    )


def _look_like_classes(classes: dict[str, tuple[File, ...]]) -> bool:
    """Whether the files of these folders are different patients', rather than one patient's several files."""
    stems = {name: [stem(file.path) for file in files] for name, files in classes.items()}
    folders = Counter(one for names in stems.values() for one in set(names))
    total = sum(map(len, stems.values()))
    shared = sum(folders[one] > 1 for names in stems.values() for one in names)
    named_after = sum(one.lower().startswith(name.lower()) for name, names in stems.items() for one in names)
    dated = sum(_DATE.fullmatch(one) is not None for names in stems.values() for one in names)
    roles = sum(is_role(one) or is_label_word(one) for names in stems.values() for one in names)
    return max(shared, named_after, dated, roles) <= MAX_SHARED * total


def _hold_masks(classes: dict[str, tuple[File, ...]]) -> bool:
    """Whether a folder that may be a finding's holds masks of the others' images, by their names."""
    masks = {
        shared_name(stem(file.path), LABEL_WORDS)
        for name, files in classes.items()
        if plain(name) in FINDINGS
        for file in files
    }
    others = {
        shared_name(stem(file.path), IMAGE_WORDS)
        for name, files in classes.items()
        if plain(name) not in FINDINGS
        for file in files
    }
    return len(masks & others) > MAX_SHARED * len(masks)


def _cases(files: Sequence[File], split: str, name: str, target: int) -> list[ListedCase]:
    """Return one case per image; a folder of DICOM files below the class is one series."""
    cases: dict[str, ListedCase] = {}
    for file in files:
        depth = file.parts.index(name) + 1
        below = file.parts[depth:-1]
        is_series = file.format == "dicom" and bool(below)
        path = file.path.parent if is_series else file.path
        # The same file name in two classes' folders is two cases.
        own = below if is_series else (*below, stem(file.path))
        identity = in_split(split, "/".join((name, *own)))
        cases.setdefault(identity, ListedCase(identity, identity, (path,), target=target, split=split))
    return list(cases.values())
