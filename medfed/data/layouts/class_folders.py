"""One folder per class, as image classification often has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from medfed.data.layouts._files import in_split, is_nifti, split_folders, stem, subfolders, visible
from medfed.data.layouts._layout import NO_PATIENTS, CaseListing, Layout, ListedCase
from medfed.errors import DataError


class ClassFolders(Layout, tag="class_folders", frozen=True):
    """One folder of NIfTI files per class, directly or below train, val and test.

    Classes count from 0 in the order of their folders' names.
    """

    title: ClassVar[str] = "one folder per class"
    evidence: ClassVar[str] = "one folder of NIfTI files per class"
    order: ClassVar[int] = 50

    def recognises(self, folder: Path) -> bool:
        return any(
            len(classes := subfolders(parent)) >= 2
            and any(is_nifti(path) for one in classes for path in visible(one))
            for parent in split_folders(folder).values()
        )

    def read(self, folder: Path) -> CaseListing:
        parents = split_folders(folder)
        names = sorted({path.name for parent in parents.values() for path in subfolders(parent)})
        cases: list[ListedCase] = []
        for target, name in enumerate(names):
            of_class = _cases(parents, name, target)
            if not of_class:
                raise DataError(
                    f"class {target} of {len(names)} (folders in the order of their names) has no image; add "
                    "images or remove its folder"
                )
            cases += of_class
        return CaseListing(self.title, tuple(cases), (NO_PATIENTS,), tuple(names))


def _cases(parents: Mapping[str, Path], name: str, target: int) -> list[ListedCase]:
    cases = []
    for split, parent in parents.items():
        for image in visible(parent / name) if (parent / name).is_dir() else ():
            if is_nifti(image):
                # The same file name in two classes' folders is two cases.
                identity = in_split(split, f"{name}/{stem(image)}")
                cases.append(ListedCase(identity, identity, (image,), target=target, split=split))
    return cases
