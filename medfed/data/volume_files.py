"""Volumes in a file or folder: files are classified by content, and each goes to its format's reader."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from medfed.data.dicom import tags
from medfed.data.dicom.colour import is_colour, read_colour
from medfed.data.dicom.directory import listed_files
from medfed.data.dicom.file import DicomFile, open_dicom
from medfed.data.dicom.volumes import (
    assemble_volumes,
    describe_non_image,
    is_grey_picture,
    is_placed_capture,
    read_grey_picture,
)
from medfed.data.metaimage import is_metaimage, metaimage_voxels, read_metaimage
from medfed.data.nifti import is_nifti, read_nifti, unpacked_head
from medfed.data.nrrd import is_nrrd, nrrd_voxels, read_nrrd
from medfed.data.pictures import is_picture, read_picture
from medfed.data.read_options import ReadOptions
from medfed.data.refusals import EmptyFileError
from medfed.data.volume import Volume
from medfed.data.walk import walk_once
from medfed.errors import ImageError

_ANALYZE = (b"\x5c\x01\0\0", b"\0\0\x01\x5c")  # the header's size in either byte order
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
# The formats, for messages.
FORMATS = "DICOM, NIfTI, MetaImage, NRRD, PNG, JPEG or TIFF"
# A file of such a name that is not of the format is damaged, and is not passed over.
_IMAGE_ENDINGS = {".nii": "NIfTI", ".nii.gz": "NIfTI", ".mha": "MetaImage", ".mhd": "MetaImage"}
_IMAGE_ENDINGS |= {".nrrd": "NRRD", ".nhdr": "NRRD"}
# Names of headers whose voxels may be in another file.
_HEADER_ENDINGS = (".mhd", ".nhdr", ".mha", ".nrrd")
Reader = Callable[[str, ReadOptions], Volume]
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
        note = None if is_placed_capture(file) else describe_non_image(file)
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
    reader = reader_of(path)
    if reader is not None:
        return [reader(path, options)]
    file = open_dicom(path)
    if file is None:
        raise ImageError(_unknown_format(_first_bytes(path)))
    if tags.DIRECTORY in file.elements:
        return _read_files(listed_files(file), options)
    if is_colour(file) and not options.as_label:
        return [read_colour(file, options)]
    if is_grey_picture(file) and not options.as_label:
        return [read_grey_picture(file, options)]
    note = None if is_placed_capture(file) else describe_non_image(file)
    if note is not None:
        raise ImageError(f"not an image: {note}")
    volumes, skipped = assemble_volumes([file], options)
    if not volumes:
        raise ImageError(f"the file contains no volume, only {skipped[0]}")
    return _with_notes(volumes, skipped)


def _read_files(paths: list[str], options: ReadOptions) -> list[Volume]:
    skipped: list[str] = []
    dicoms: list[DicomFile] = []
    pictures: list[DicomFile] = []
    captures: list[DicomFile] = []
    others: dict[str, Reader] = {}
    inodes: set[tuple[int, int]] = set()
    voxels = _voxel_files(paths)
    for path in sorted(set(paths) - voxels):
        note = _file_note(path, inodes)
        file = open_dicom(path) if note is None else None
        reader = reader_of(path) if note is None and file is None else None
        if file is not None and not options.as_label and (is_colour(file) or is_grey_picture(file)):
            pictures.append(file)
        elif file is not None and is_placed_capture(file):
            captures.append(file)
        elif file is not None:
            note = describe_non_image(file)
            dicoms += [file] if note is None else []
        elif reader is not None:
            others[path] = reader
        elif note is None:
            note = _skipped_note(path)
        skipped += [note] if note is not None else []
    if dicoms or others:
        skipped += [describe_non_image(file) or "" for file in captures]
    else:
        dicoms = captures
    if dicoms or others:  # a slice that has lost its place must not be passed over as a picture
        dicoms += [file for file in pictures if not is_colour(file) and describe_non_image(file) is None]
        pictures = [file for file in pictures if file not in dicoms]
    volumes, notes = assemble_volumes(dicoms, options)
    skipped += notes
    others, notes = _without_pictures(others, bool(dicoms))
    skipped += notes
    volumes += [reader(path, options) for path, reader in others.items()]
    if volumes:
        skipped += [describe_non_image(file) or "a picture beside other images" for file in pictures]
    else:
        volumes = [_read_dicom_picture(file, options) for file in pictures]
    if not volumes:
        rest = f"only {len(skipped)} other files, the first {skipped[0]}" if skipped else "no file at all"
        raise ImageError(f"there is no volume, {rest}; name an image file ({FORMATS}), or a folder of them")
    return _with_notes(volumes, skipped)


def _read_dicom_picture(file: DicomFile, options: ReadOptions) -> Volume:
    return read_colour(file, options) if is_colour(file) else read_grey_picture(file, options)


def _voxel_files(paths: list[str]) -> set[str]:
    """Return the files that hold the voxels of another file's header; a damaged header names none."""
    headers = [path for path in paths if path.lower().endswith(_HEADER_ENDINGS) and os.path.isfile(path)]
    found = set()
    for path in headers:
        try:
            voxels = _voxels_beside(path, _first_bytes(path))
        except ImageError:
            continue
        found |= {voxels} if voxels is not None else set()
    return found


def _without_pictures(readers: dict[str, Reader], dicom: bool) -> tuple[dict[str, Reader], list[str]]:
    """Return the readers without pictures beside other images, such as screenshots, and their notes."""
    volumes = {path: reader for path, reader in readers.items() if reader is not read_picture}
    if not volumes and not dicom:
        return readers, []
    return volumes, ["a picture (PNG, JPEG or TIFF) beside other images"] * (len(readers) - len(volumes))


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
    for ending, form in _IMAGE_ENDINGS.items():
        if path.lower().endswith(ending):
            raise ImageError(f"one of the files is named as {form}, but is {_unknown_format(start)}")
    if start[:4] == _ZIP or start[:2] == _GZIP:
        return "a packed archive (zip or gzip), which is not opened; unpack it"
    if start[:4] in _ANALYZE:
        return "an Analyze image, whose header gives no orientation"
    return "of no format that is read"


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
    return f"of no format that is read ({FORMATS}); convert it to one of them"


def reader_of(path: str) -> Reader | None:
    """Return the reader of a file's format by its first bytes; None if it is DICOM or no known format."""
    start = _first_bytes(path)
    if start[128:132] == b"DICM":  # its preamble may be another format's first bytes
        return None
    if is_nifti(unpacked_head(start)):
        return read_nifti
    if is_picture(start):
        return read_picture
    if is_nrrd(start):
        return read_nrrd
    return read_metaimage if is_metaimage(start) else None


def _first_bytes(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(4096)


def _with_notes(volumes: list[Volume], notes: list[str]) -> list[Volume]:
    return [replace(v, info=replace(v.info, skipped=(*v.info.skipped, *notes))) for v in volumes]


def _list_files(path: str) -> list[str]:
    def stop(error: OSError) -> None:
        raise error

    return [os.path.join(folder, name) for folder, names in walk_once(path, stop) for name in names]


def files_read(path: Path) -> list[Path]:
    """Return every file that `read` or `read_label` opens for a path, in order.

    These are the files below a folder, links followed; of a DICOMDIR the files that it lists; of a header of
    MetaImage or NRRD also the file of its voxels. A damaged header names none, and `read` refuses it.

    Raises:
        OSError: if the path does not exist or may not be read.
    """
    if stat.S_ISDIR(os.stat(path).st_mode):
        names = [name for name in _list_files(str(path)) if not os.path.basename(name).startswith(".")]
        return sorted(Path(name) for name in names if os.path.isfile(name))
    try:
        return [path, *map(Path, _files_named_by(str(path)))]
    except ImageError:
        return [path]


def _files_named_by(path: str) -> list[str]:
    """Return the further files that a single file makes `read` open.

    Raises:
        ImageError: if it is damaged.
    """
    start = _first_bytes(path)
    voxels = _voxels_beside(path, start)
    if voxels is not None:
        return [voxels]
    file = open_dicom(path) if start[128:132] == b"DICM" else None
    return listed_files(file) if file is not None and tags.DIRECTORY in file.elements else []


def _voxels_beside(path: str, start: bytes) -> str | None:
    if is_metaimage(start):
        return metaimage_voxels(path)
    return nrrd_voxels(path) if is_nrrd(start) else None
