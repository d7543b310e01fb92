"""The files that a DICOMDIR lists."""

from __future__ import annotations

import os

from medfed.data.dicom import tags
from medfed.data.dicom.file import DicomFile
from medfed.errors import ImageError


def listed_files(directory: DicomFile) -> list[str]:
    """Return the paths that a DICOMDIR lists, all below its own folder.

    Raises:
        ImageError: if one is missing, or lies outside the folder.
    """
    paths, missing = _split_by_existence(directory)
    if missing:
        raise ImageError(
            f"{missing} of the {missing + len(paths)} files that the DICOMDIR lists are missing; copy the"
            " medium again"
        )
    return paths


def describe_dicomdir(directory: DicomFile) -> str:
    """Return the note for a DICOMDIR found in a folder: what it is, and how many of its files are missing."""
    try:
        paths, missing = _split_by_existence(directory)
    except ImageError:
        return "a DICOMDIR, which lists files outside its own folder"
    note = "a DICOMDIR, which lists files and holds no image"
    return f"{note}; {missing} of its {missing + len(paths)} files are missing" if missing else note


def _split_by_existence(directory: DicomFile) -> tuple[list[str], int]:
    """Return the listed paths that exist, and how many do not."""
    folder = os.path.dirname(os.path.abspath(directory.path))
    paths = []
    missing = 0
    for record in directory.elements.items(tags.DIRECTORY):
        parts = [part.decode("ascii", "replace") for part in record.texts(tags.FILE_ID)]
        if not parts:
            continue
        if any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
            raise ImageError(
                "the DICOMDIR lists a file outside its own folder; name the images' folder instead"
            )
        # In its own or in lower case, as copying may have changed it.
        candidates = [os.path.join(folder, *names) for names in (parts, [part.lower() for part in parts])]
        existing = list(filter(os.path.isfile, candidates))
        paths += existing[:1]
        missing += not existing
    return paths, missing
