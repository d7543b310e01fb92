"""The files that a DICOMDIR lists."""

from __future__ import annotations

import os

from medfed.data.dicom.file import DicomFile
from medfed.errors import ImageError

DIRECTORY = 0x00041220
_FILE_ID = 0x00041500


def listed_files(directory: DicomFile) -> list[str]:
    """Return the paths that a DICOMDIR lists, all of them below its own folder.

    Raises:
        ImageError: if one is missing, or points out of the folder.
    """
    paths, missing = _listed(directory)
    if missing:
        raise ImageError(
            f"{missing} of the {missing + len(paths)} files that the DICOMDIR lists are not there;"
            " copy the medium again"
        )
    return paths


def describe_dicomdir(directory: DicomFile) -> str:
    """Return a line for a DICOMDIR that is met among the files of a folder: what it lists, and how much
    of it is gone.
    """
    try:
        paths, missing = _listed(directory)
    except ImageError:
        return "a DICOMDIR, which lists files outside of its own folder"
    line = "a DICOMDIR, which lists files and holds no image"
    return f"{line}; {missing} of its {missing + len(paths)} files are not there" if missing else line


def _listed(directory: DicomFile) -> tuple[list[str], int]:
    """Return the paths that are there, and how many are not."""
    folder = os.path.dirname(os.path.abspath(directory.path))
    paths = []
    missing = 0
    for record in directory.elements.items(DIRECTORY):
        parts = [part.decode("ascii", "replace") for part in record.texts(_FILE_ID)]
        if not parts:
            continue
        if any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
            raise ImageError(
                "the DICOMDIR lists a file outside of its own folder; name the images' folder instead"
            )
        path = _found(folder, parts)
        if path is None:
            missing += 1
        else:
            paths.append(path)
    return paths, missing


def _found(folder: str, parts: list[str]) -> str | None:
    """Return the path of a file ID; copying from a medium may have changed the case of its letters."""
    for names in (parts, [part.lower() for part in parts]):
        path = os.path.join(folder, *names)
        if os.path.isfile(path):
            return path
    return None
