"""What a hospital's folder holds besides its cases: every file that no case uses, by reason.

A file that is passed over without a word may be a case that was meant. Counts by reason may be printed; the
files' names are the hospital's own and go into its note (`own_notes.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from medfed.data.case import Case, paths_of
from medfed.data.layouts import CaseListing, Survey
from medfed.data.own_notes import write_note
from medfed.data.walk import walk_once

NOTE = "left-out"

# What is said of files of a format, where that is more than that no case uses them.
_REASONS: Mapping[str, str] = {
    "arrays": "numpy's arrays, which data: {kind: arrays} of a study reads",
    "archive": "archives, which must be unpacked to be used",
    "unfinished": "unfinished copies by their names (.part, ...), which must be copied again",
}
# Header files, and the files of the same stem that hold their voxels.
_HEADERS = (".mhd", ".nhdr", ".hdr")
_VOXEL_FILES = (".raw", ".zraw", ".raw.gz", ".img", ".img.gz")


def left_out_files(
    survey: Survey, listing: CaseListing, cases: Iterable[Case]
) -> dict[str, tuple[Path, ...]]:
    """Return the files of a folder that neither a case nor the layout uses, by a reason that may be printed.

    What stands first in the order of reasons is what the layout itself says; a file has one reason.
    """
    used = _Used.of(cases, listing.read)
    groups: dict[str, list[Path]] = {}
    explained: set[Path] = set()
    for reason, files in listing.left_out.items():
        groups[reason] = [path for path in files if path not in explained]
        explained.update(files)
    for file in sorted(survey.files, key=lambda file: file.format):
        if file.path not in explained and not used.holds(file.path, is_dicom=file.format == "dicom"):
            what = _REASONS.get(file.format, f"{file.format} files that no case uses")
            groups.setdefault(what, []).append(file.path)
    return {reason: tuple(files) for reason, files in groups.items() if files}


class _Used:
    """The files and series folders of cases, by their real paths: a table may name them over a link."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._real = cache(os.path.realpath)
        real = {os.path.realpath(path) for path in paths}
        folders = {path for path in real if os.path.isdir(path)}
        self.files = real - folders
        # A case's folder may hold links to folders elsewhere, which its reader follows.
        self.folders = {os.path.realpath(parent) for one in folders for parent, _ in walk_once(one)}
        headers = [path for path in self.files if path.endswith(_HEADERS)]
        self.voxels = {os.path.splitext(path)[0] + ending for path in headers for ending in _VOXEL_FILES}

    @classmethod
    def of(cls, cases: Iterable[Case], read: Iterable[Path]) -> _Used:
        """Return what cases and a layout use."""
        named = list(read)
        for case in cases:
            named += [path for source in case.image for path in paths_of(source)]
            named += [path for _, path in case.masks]
            named += [case.label] if case.label is not None else []
        return cls(named)

    def holds(self, path: Path, *, is_dicom: bool) -> bool:
        """Whether a case uses a file: by name, as a series' file, or as the voxels of a header file."""
        parent = str(self._real(path.parent))
        real = os.path.realpath(path) if path.is_symlink() else os.path.join(parent, path.name)
        if real in self.files or real in self.voxels:
            return True
        return is_dicom and parent in self.folders


def describe_left_out(counts: Mapping[str, int]) -> str:
    """Return one line on what no case uses, such as '3 nifti files that no case uses, 2 links to nothing'."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def note_left_out(
    folder: Path, files: Mapping[str, Sequence[Path]], site_secret: bytes, chosen: Path | None = None
) -> str:
    """Write the names of the files that no case uses into the site's own folder; return a line about it.

    The line is empty if there is none.
    """
    rows = [(reason, os.path.relpath(path, folder)) for reason, paths in files.items() for path in paths]
    if not rows:
        return ""
    try:
        where = write_note(folder, site_secret, NOTE, ("reason", "file"), rows, chosen)
    except OSError:
        return "the names of the files that no case uses could not be written into this site's own folder"
    return f"the names of the files that no case uses are in {where}"
