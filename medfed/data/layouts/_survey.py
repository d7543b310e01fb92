"""What lies in a hospital's folder: one walk, with each file's format by its first bytes.

Every layout reads the survey and none walks the folder itself, so that all of them see the same files, and
`index.py` can say of each file whether a case uses it.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from medfed.data.cache_location import NAME
from medfed.data.walk import enters, is_system_folder

Format = Literal[
    "nifti",
    "dicom",
    "png",
    "jpeg",
    "tiff",
    "metaimage",
    "nrrd",
    "table",
    "json",
    "archive",
    "arrays",
    "unfinished",
    "empty",
    "other",
]

# Formats that hold an image's voxels, or a label's.
IMAGE_FORMATS: frozenset[Format] = frozenset({"nifti", "dicom", "png", "jpeg", "tiff", "metaimage", "nrrd"})

# The first bytes of a format. DICOM's stand behind its preamble.
_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"NRRD000", "nrrd"),
)
_ENDINGS: tuple[tuple[str, Format], ...] = (
    (".nii", "nifti"),
    (".nii.gz", "nifti"),
    (".dcm", "dicom"),
    (".ima", "dicom"),
    (".mha", "metaimage"),
    (".mhd", "metaimage"),
    (".csv", "table"),
    (".tsv", "table"),
    (".xlsx", "table"),
    (".json", "json"),
    (".npz", "arrays"),
    (".npy", "arrays"),
    (".zip", "archive"),
    (".7z", "archive"),
    (".rar", "archive"),
    (".tar", "archive"),
    (".tgz", "archive"),
    (".tar.gz", "archive"),
    (".part", "unfinished"),
    (".partial", "unfinished"),
    (".filepart", "unfinished"),
    (".crdownload", "unfinished"),
    (".download", "unfinished"),
)
# A ZIP file's first bytes. They are an Excel workbook's, too.
_ZIP = b"PK\x03\x04"
# A link that would lead back to where it lies.
CIRCLE = "links to a folder in which they lie"
# What else no case can use, counted as it is told.
HIDDEN_FILES = "hidden files"
SYSTEM = "hidden folders, or folders of the system like a recycle bin, which are not looked into"
EMPTY_FOLDERS = "empty folders"
ENTERED = "folders that are read by another path already"

_PREAMBLE = 128
_HEAD = 256
# The value representations that a first element of group 0002 or 0008 can have (PS3.5, explicit encoding).
_VALUE_REPRESENTATIONS = frozenset({b"UL", b"OB", b"UI", b"SH", b"CS", b"DA", b"TM", b"LO", b"DT", b"ST"})


@dataclass(frozen=True, repr=False)
class File:
    """A file of the folder. `parts` is its path below the folder; it names patients and is not printed."""

    path: Path
    parts: tuple[str, ...]
    format: Format

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.parts[-1]


@dataclass(frozen=True, repr=False)
class Survey:
    """The files below a folder, in order, and how many entries could not be looked into, by reason.

    `outside` counts the links to files and folders that lie outside the folder.
    """

    folder: Path
    files: tuple[File, ...]
    unreadable: Mapping[str, int] = field(default_factory=dict)
    outside: int = 0

    @classmethod
    def of(cls, folder: Path) -> Survey:
        """Return the survey of a folder.

        Links are followed, also out of the folder, because research copies consist of them; how many lead out
        is in `outside`. Each real folder is entered once, and a link to a folder around it or around the data
        folder never. Hidden entries, folders of the system and empty ones are counted in `unreadable`;
        medfed's own folder is not.
        """
        unreadable: Counter[str] = Counter()
        outside: Counter[str] = Counter()
        files = [
            File(path, path.relative_to(folder).parts, file_format(path))
            for path in sorted(_walk(folder, unreadable, outside))
        ]
        return cls(folder, tuple(files), dict(unreadable), outside.total())

    @cached_property
    def folders(self) -> Mapping[tuple[str, ...], tuple[File, ...]]:
        """The files directly in each folder that holds any, by the folder's path below this one."""
        found: dict[tuple[str, ...], list[File]] = {}
        for file in self.files:
            found.setdefault(file.parts[:-1], []).append(file)
        return {parts: tuple(files) for parts, files in found.items()}

    def below(self, *parts: str) -> tuple[File, ...]:
        """Return the files anywhere below a folder, such as `below("imagesTr")`."""
        return tuple(file for file in self.files if file.parts[: len(parts)] == parts != file.parts)

    def subfolders(self, *parts: str) -> tuple[str, ...]:
        """Return the names of the folders directly below a folder that hold files at any depth, sorted."""
        depth = len(parts)
        return tuple(
            sorted({file.parts[depth] for file in self.below(*parts) if len(file.parts) > depth + 1})
        )

    def named(self, name: str) -> File | None:
        """Return the file of this name directly in the folder, or None."""
        return next((file for file in self.files if file.parts == (name,)), None)

    def describe(self) -> str:
        """Return what the folder holds, as counts of formats, such as '12 nifti, 1 table'."""
        counts = Counter(file.format for file in self.files)
        return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "no file"


def file_format(path: Path) -> Format:
    """Return a file's format by its first bytes; where these say nothing, by its ending.

    A file whose ending promises an image and whose bytes are none still counts as that image: it is
    damaged, and must be reported and not passed over.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        head = b""
    ending = next((form for ending, form in _ENDINGS if path.name.lower().endswith(ending)), None)
    if not head:
        return ending or "empty"
    for magic, form in _MAGIC:
        if head.startswith(magic):
            return form
    if head[_PREAMBLE : _PREAMBLE + 4] == b"DICM" or _starts_as_dicom(head):
        return "dicom"
    return ending or ("archive" if head.startswith(_ZIP) else "other")


def _starts_as_dicom(head: bytes) -> bool:
    """Whether a file without preamble begins with a data element of group 0002 or 0008."""
    if head[:4] in (b"\x02\0\0\0", b"\x02\0\x01\0") or head[:2] == b"\x08\0":
        return head[4:6] in _VALUE_REPRESENTATIONS or int.from_bytes(head[4:8], "little") < _HEAD
    return head[:2] == b"\0\x08" and head[4:6] in _VALUE_REPRESENTATIONS


def _walk(folder: Path, unreadable: Counter[str], outside: Counter[str]) -> Iterator[Path]:
    root = os.path.realpath(folder)
    entered = {root}

    def failed(_: OSError) -> None:
        unreadable["folders that may not be read"] += 1

    for parent, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        for name in names:
            path = Path(parent, name)
            if (reason := _why_no_file(path)) is None:
                outside["files"] += path.is_symlink() and not _is_below(os.path.realpath(path), root)
                yield path
            else:
                unreadable[reason] += 1
        if not folders and all(name.startswith(".") for name in names) and parent != str(folder):
            unreadable[EMPTY_FOLDERS] += 1
        own = []
        for name in sorted(name for name in folders if name != NAME):
            if (reason := _why_not_entered(parent, name, root, entered)) is None:
                own.append(name)
            else:
                unreadable[reason] += 1
        folders[:] = own
        outside["folders"] += sum(_leads_out(parent, name, root) for name in folders)


def _why_no_file(path: Path) -> str | None:
    """Return why an entry is not taken for a file of the hospital, or None if it is."""
    if path.name.startswith("."):
        return HIDDEN_FILES
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return "links to nothing"
    return None if regular else "devices, pipes or sockets"


def _why_not_entered(parent: str, name: str, root: str, entered: set[str]) -> str | None:
    """Return why a folder is not looked into, or None; it is added to the real paths `entered`."""
    if is_system_folder(name):
        return SYSTEM
    if _is_circle(parent, name, root):
        return CIRCLE
    return None if enters(parent, name, entered) else ENTERED


def _is_circle(parent: str, name: str, root: str) -> bool:
    """Whether a link leads to a folder in which it lies itself, or in which the data folder lies.

    Below such a folder lie other patients, or other hospitals, and none of them is this one's.
    """
    path = os.path.join(parent, name)
    if not os.path.islink(path):
        return False
    real = os.path.realpath(path)
    return _is_below(os.path.realpath(parent), real) or _is_below(root, real)


def _leads_out(parent: str, name: str, root: str) -> bool:
    path = os.path.join(parent, name)
    return os.path.islink(path) and not _is_below(os.path.realpath(path), root)


def _is_below(path: str, folder: str) -> bool:
    """Whether a real path is a folder's, or lies below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
