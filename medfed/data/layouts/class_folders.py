"""A folder a class, as image classification often has it."""

from __future__ import annotations

from pathlib import Path

from medfed.data.index import Case
from medfed.data.layouts._layout import NO_PATIENTS, Found, is_nifti, split_folders, stem, visible
from medfed.data.splits import UNASSIGNED, case_token
from medfed.errors import DataError


def is_class_folders(folder: Path) -> bool:
    """Whether at least two sub-folders hold NIfTI files, directly or below train, val and test."""
    parents = split_folders(folder) or {UNASSIGNED: folder}
    return any(
        len(classes := [path for path in visible(parent) if path.is_dir()]) >= 2
        and any(is_nifti(x) for c in classes for x in visible(c))
        for parent in parents.values()
    )


def class_folders(folder: Path, site_secret: bytes) -> Found:
    """List the images of each class's folder; classes count from 0 in the order of their names."""
    parents = split_folders(folder) or {UNASSIGNED: folder}
    names = sorted({path.name for parent in parents.values() for path in visible(parent) if path.is_dir()})
    cases = []
    for target, name in enumerate(names):
        images = [
            (split, x)
            for split, parent in parents.items()
            if (parent / name).is_dir()
            for x in visible(parent / name)
            if is_nifti(x)
        ]
        if not images:
            raise DataError(
                f"class {target} of {len(names)} (folders in the order of their names) has no image; add "
                "images or remove its folder"
            )
        for split, image in images:
            # The same file name in two classes' folders is two cases.
            identity = f"{split}/{name}/{stem(image)}" if split else f"{name}/{stem(image)}"
            cases.append(
                Case(
                    id=identity,
                    patient=identity,
                    token=case_token(site_secret, identity),
                    image=(image,),
                    target=target,
                    split=split,
                )
            )
    return Found("a folder a class", tuple(cases), (NO_PATIENTS,), tuple(names))
