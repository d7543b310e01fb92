"""One folder per patient (or visit), with its images and labels told apart by the files' names.

So have it KiTS (`imaging`, `segmentation`), BraTS (`-t1c`, `-t1n`, `-t2f`, `-t2w`, `-seg` after the patient's
name), TotalSegmentator (`ct` beside a folder `segmentations` of one mask per structure), and many hospitals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medfed.data.case import Fault
from medfed.data.layouts._files import composed, in_split, is_image, split_folders, stem
from medfed.data.layouts._layout import CaseListing, Layout, ListedCase
from medfed.data.layouts._numbered_channels import one_of
from medfed.data.layouts._roles import STRUCTURE_FOLDERS, is_label_word, is_role, plain
from medfed.data.layouts._survey import File, Survey
from medfed.data.refusals import SeveralFilesError, SeveralLabelsError
from medfed.errors import DataError

# The least share of folders that must have a role for it to be one of the hospital's images or labels.
MIN_SHARE = 0.5


@dataclass(frozen=True, repr=False)
class _Folder:
    """A patient's folder: its files by role, and its masks by structure."""

    split: str
    own: tuple[str, ...]
    roles: Mapping[str, tuple[Path, ...]]
    masks: tuple[tuple[str, Path], ...]

    @property
    def id(self) -> str:
        return in_split(self.split, "/".join(self.own))


class PatientFolders(Layout, tag="patient_folders", frozen=True):
    """One folder per patient or visit, with files that are called alike in each of them.

    channels: the names of the images of a case, in order, if not all of them are wanted; without it, all
    images that the folders have, in alphabetical order.
    """

    channels: tuple[str, ...] = ()

    title: ClassVar[str] = "one folder per patient"
    needs: ClassVar[str] = (
        "PATIENT/ct beside PATIENT/seg, PATIENT/PATIENT-t1c and so on, or PATIENT/ct beside "
        "PATIENT/segmentations/liver, with the same words in each folder"
    )
    order: ClassVar[int] = 70

    def evidence(self, survey: Survey) -> str | None:
        folders = list(_folders(survey))
        if any(_is_known(plain(name)) for folder in folders for name in folder.own):
            return None  # folders of images and of labels, which hold many patients each
        images, labels = _roles(folders)
        named = [role for role in images if is_role(role)]
        masks = sum(bool(folder.masks) for folder in folders)
        if not images or not (labels or masks or named) or len(images) > len(named) + bool(labels or masks):
            return None
        found = [*_printable(images), *_printable(labels), *(["a folder of masks"] if masks else [])]
        return f"{len(folders)} folders have files called alike ({', '.join(found)})"

    def read(self, survey: Survey) -> CaseListing:
        folders = list(_folders(survey))
        images, labels = _roles(folders)
        channels = self._chosen(images)
        if len(labels) > 1:
            raise DataError(
                f"the patients' folders have {len(labels)} kinds of labels ({', '.join(labels)}), and "
                "nothing says which one is meant; say it with `layout: {kind: pattern, image: ..., label: "
                "...}`"
            )
        label = labels[0] if labels else ""
        wanted = {*channels, label}
        cases = [_case(folder, channels, label) for folder in folders if wanted & set(folder.roles)]
        several = channels if len(channels) > 1 else ()
        return CaseListing(self.title, tuple(cases), channels=several)

    def _chosen(self, images: Sequence[str]) -> tuple[str, ...]:
        """Return the roles that are channels, in order."""
        lacking = [name for name in self.channels if plain(name) not in images]
        if lacking or not images:
            raise DataError(
                f"no file of most patients' folders is called {' or '.join(lacking) or 'as an image'}; there "
                f"are {', '.join(_printable(images)) or 'none'}"
            )
        return tuple(plain(name) for name in self.channels) or tuple(images)


def _folders(survey: Survey) -> Iterator[_Folder]:
    """Yield each folder that directly holds images, with what the files' names say.

    Folders below one of them (masks per structure, single instances) are not patients' own.
    """
    holding = {parts for parts, files in survey.folders.items() if any(map(is_image, files))}
    for split, parent in split_folders(survey).items():
        for parts in sorted(holding):
            own = parts[len(parent) :]
            around = {parts[:depth] for depth in range(len(parent) + 1, len(parts))}
            if parts[: len(parent)] == parent and own and not around & holding:
                images = [file for file in survey.folders[parts] if is_image(file)]
                yield _Folder(split, own, _by_role(own, images), tuple(_masks(survey, parts)))


def _masks(survey: Survey, parts: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for name in survey.subfolders(*parts):
        if plain(name) in STRUCTURE_FOLDERS:
            for file in survey.folders.get((*parts, name), ()):
                if is_image(file):
                    yield stem(file.path), file.path


def _by_role(own: tuple[str, ...], files: Sequence[File]) -> dict[str, tuple[Path, ...]]:
    """Return the files by their role: what their name says besides the folder's own name."""
    roles: dict[str, list[Path]] = {}
    for file in files:
        roles.setdefault(_role(stem(file.path), own), []).append(file.path)
    return {role: tuple(paths) for role, paths in roles.items()}


def _role(name: str, own: tuple[str, ...]) -> str:
    """Return a file's role: 'P1_t1' in P1 is 't1', and so is 't1' and 'x_7_t1' by its last word."""
    for folder in map(composed, reversed(own)):
        if name.lower().startswith(folder.lower()) and len(name) > len(folder):
            return plain(name[len(folder) :])
    for known in (is_label_word, is_role):
        if known(name):
            return plain(name)
    words = name.replace("-", "_").split("_")
    last = words[-1]
    return plain(last) if len(words) > 1 and (is_role(last) or is_label_word(last)) else plain(name)


def _roles(folders: Sequence[_Folder]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the roles of images and of labels that most folders have, in alphabetical order."""
    counts = Counter(role for folder in folders for role in folder.roles)
    usual = sorted(role for role, count in counts.items() if role and count >= MIN_SHARE * len(folders))
    # A single folder, or files that are all numbers, show no habit.
    usual = [role for role in usual if not role.isdigit() and (len(folders) > 1 or _is_known(role))]
    labels = tuple(role for role in usual if is_label_word(role))
    return tuple(role for role in usual if role not in labels), labels


def _is_known(role: str) -> bool:
    return is_label_word(role) or is_role(role)


def _printable(roles: Sequence[str]) -> list[str]:
    """Return roles with those replaced that are no word of the field: a name may be a patient's."""
    return [role if _is_known(role) else "another word" for role in roles]


def _case(folder: _Folder, channels: Sequence[str], label: str) -> ListedCase:
    paths = folder.roles.get(label, ()) if label else ()
    return ListedCase(
        folder.id,
        folder.own[0],
        tuple(one_of(folder.roles.get(role, ())) for role in channels),
        paths[0] if paths else None,
        split=folder.split,
        masks=folder.masks,
        fault=_fault(folder, channels, label),
    )


def _fault(folder: _Folder, channels: Sequence[str], label: str) -> Fault | None:
    """Return why nobody can say which files of a folder are meant, or None."""
    if any(len(folder.roles.get(role, ())) > 1 for role in channels):
        return Fault(SeveralFilesError, "its folder has two files for one image; keep one")
    if len(folder.roles.get(label, ())) > 1:
        return Fault(SeveralLabelsError, "its folder has two labels; keep one")
    return None
