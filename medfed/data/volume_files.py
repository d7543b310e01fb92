"""Volumes in a file or folder: files are classified by content, and each goes to its format's reader."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

from medfed.data.cache_location import skip_cache_folder
from medfed.data.dicom import tags
from medfed.data.dicom.directory import listed_files
from medfed.data.dicom.file import DicomFile, open_dicom
from medfed.data.dicom.volumes import assemble_volumes, describe_non_image
from medfed.data.nifti import is_nifti, read_nifti, unpacked_head
from medfed.data.read_options import ReadOptions
from medfed.data.refusals import EmptyFileError
from medfed.data.volume import Volume
from medfed.errors import ImageError

_ANALYZE = (b"\x5c\x01\0\0", b"\0\0\x01\x5c")  # the header's size in either byte order
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_NEVER_IMAGES = frozenset(
    (".txt", ".csv", ".tsv", ".json", ".xml", ".log", ".md", ".html", ".ini", ".db", ".py")
)


def read_volumes(path: str, options: ReadOptions) -> list[Volume]:
    """Return every volume in a file or folder.

    Raises:
        ImageError: if no volume is found, or a file that belongs to a volume cannot be read correctly.
        OSError: if the file system fails.
    """
    if stat.S_ISDIR(os.stat(path).st_mode):
        return _read_files(_list_files(path), options)
    return _read_file(path, options)


def read_series(paths: list[str], options: ReadOptions) -> list[Volume]:
    """Return the volumes in exactly these files, which are the images of one DICOM series.

    Raises:
        ImageError: if one of them is no DICOM image, or cannot be read correctly.
        OSError: if the file system fails.
    """
    files = []
    for path in paths:
        file = open_dicom(path) if os.stat(path).st_size else None
        if file is None:
            raise ImageError("one of a series' files is empty or no DICOM file; copy it again")
        note = describe_non_image(file)
        if note is not None:
            raise ImageError(f"one of a series' files is not an image: {note}")
        files.append(file)
    volumes, notes = assemble_volumes(files, options)
    if not volumes:
        raise ImageError(f"the series contains no volume, only {notes[0] if notes else 'no file at all'}")
    return _with_notes(volumes, notes)


def _read_file(path: str, options: ReadOptions) -> list[Volume]:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("neither a file nor a folder; give one")
    if status.st_size == 0:
        raise EmptyFileError("the file is empty (0 bytes); copy it again")
    if _is_nifti(path):
        return [read_nifti(path, options)]
    file = open_dicom(path)
    if file is None:
        raise ImageError(_unknown_format(_first_bytes(path)))
    if tags.DIRECTORY in file.elements:
        return _read_files(listed_files(file), options)
    note = describe_non_image(file)
    if note is not None:
        raise ImageError(f"not an image: {note}")
    volumes, skipped = assemble_volumes([file], options)
    if not volumes:
        raise ImageError(f"the file contains no volume, only {skipped[0]}")
    return _with_notes(volumes, skipped)


def _read_files(paths: list[str], options: ReadOptions) -> list[Volume]:
    skipped: list[str] = []
    dicoms: list[DicomFile] = []
    niftis: list[str] = []
    inodes: set[tuple[int, int]] = set()
    for path in sorted(set(paths)):
        note = _file_note(path, inodes)
        file = open_dicom(path) if note is None else None
        if file is not None:
            note = describe_non_image(file)
            dicoms += [file] if note is None else []
        elif note is None and _is_nifti(path):
            niftis.append(path)
        elif note is None:
            note = _skipped_note(path)
        skipped += [note] if note is not None else []
    volumes, notes = assemble_volumes(dicoms, options)
    skipped += notes
    volumes += [read_nifti(path, options) for path in niftis]
    if not volumes:
        others = f"only {len(skipped)} other files, the first {skipped[0]}" if skipped else "no file at all"
        raise ImageError(f"there is no volume, {others}; name a DICOM or NIfTI file, or a folder of them")
    return _with_notes(volumes, skipped)


def _file_note(path: str, inodes: set[tuple[int, int]]) -> str | None:
    """Return why a file is skipped before it is opened, or None; add it to the `inodes` seen so far.

    Raises:
        ImageError: if it is empty and may have been an image.
    """
    if os.path.islink(path) and not os.path.exists(path):
        return "a broken link"
    status = os.stat(path)
    inode = (status.st_dev, status.st_ino)
    if not stat.S_ISREG(status.st_mode):
        return "neither a file nor a folder"
    if os.path.basename(path).startswith("."):
        return "a hidden file"
    if inode in inodes:
        return "a link to another of the files"
    if status.st_size == 0:
        if Path(path).suffix.lower() in _NEVER_IMAGES:
            return "an empty file"
        raise EmptyFileError(
            "one of the files is empty (0 bytes), perhaps an image that was not copied; copy it again"
        )
    inodes.add(inode)
    return None


def _skipped_note(path: str) -> str:
    """Return the note for a file that is not an image.

    Raises:
        ImageError: if it looks like a damaged image.
    """
    start = _first_bytes(path)
    if not start.strip(b"\0"):
        raise ImageError(
            "one of the files holds zeros only, perhaps an image that was not copied; copy it again"
        )
    if path.lower().endswith((".nii", ".nii.gz")):
        raise ImageError(f"one of the files is named as NIfTI, but is {_unknown_format(start)}")
    if start[:4] == _ZIP or start[:2] == _GZIP:
        return "a packed archive (zip or gzip), which is not opened; unpack it"
    if start[:4] in _ANALYZE:
        return "an Analyze image, whose header gives no orientation"
    return "neither DICOM nor NIfTI"


def _unknown_format(start: bytes) -> str:
    if start[:2] == _GZIP:
        return "a .gz file that contains no NIfTI, or is damaged at its beginning; copy it again"
    if start[:4] == _ZIP:
        return "a zip archive, which is not opened; unpack it"
    if start[:4] in _ANALYZE:
        return (
            "not NIfTI: an Analyze header, which gives no orientation, or a damaged magic number;"
            " convert it to .nii"
        )
    return "neither DICOM nor NIfTI; convert it to one of them"


def _is_nifti(path: str) -> bool:
    return is_nifti(unpacked_head(_first_bytes(path)))


def _first_bytes(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(4096)


def _with_notes(volumes: list[Volume], notes: list[str]) -> list[Volume]:
    return [replace(v, info=replace(v.info, skipped=(*v.info.skipped, *notes))) for v in volumes]


def _list_files(path: str) -> list[str]:
    def stop(error: OSError) -> None:
        raise error

    files: list[str] = []
    seen = {os.path.realpath(path)}
    # Links to folders are followed, because research copies consist of them. Each folder is entered once, so
    # that a link to a parent folder does not loop.
    for folder, folders, names in os.walk(path, onerror=stop, followlinks=True):
        files += [os.path.join(folder, name) for name in names]
        unseen = []
        for name in sorted(skip_cache_folder(folders)):
            real = os.path.realpath(os.path.join(folder, name))
            if real not in seen:
                seen.add(real)
                unseen.append(name)
        folders[:] = unseen
    return files
