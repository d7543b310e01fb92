"""The entry points: `read` returns the volumes of a file or folder, `read_label` a label on a volume's grid.

A volume is right or refused: nothing is guessed, repaired or left out without a line in
    `Volume.info.skipped`. Only the file or folder that is named is opened, never a file beside it (a DICOMDIR
    names its own).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from medfed.data.cache_location import skip_cache_folder
from medfed.data.dicom.directory import DIRECTORY, listed_files
from medfed.data.dicom.file import DicomFile, open_dicom
from medfed.data.dicom.volumes import Wish, other_object, volumes_of
from medfed.data.nifti import is_nifti, read_nifti, unpacked_head
from medfed.data.size_limits import MAX_VOLUME_BYTES
from medfed.data.volume import Volume
from medfed.errors import ImageError, LabelError, MedfedError

Result = TypeVar("Result")


def read(
    path: str | os.PathLike[str],
    *,
    padding: Literal["air", "nan"] = "air",
    tilt: Literal["affine", "resample", "refuse"] = "affine",
    uneven: Literal["refuse", "resample"] = "refuse",
    max_bytes: int = MAX_VOLUME_BYTES,
) -> list[Volume]:
    """Return every volume in a file or folder: DICOM series (CT, MR, PET, radiographs) and NIfTI files.

    Args:
        path: a DICOM file, DICOMDIR or NIfTI file, or a folder of such, searched to its depth.
        padding: what voxels become that a DICOM header calls padding: -1000 HU in CT and else the smallest
            value
            outside the padding, or NaN. So do voxels that no slice covers where a tilt is resampled.
        tilt: a CT with a tilted gantry gets its sheared affine, is resampled onto an upright grid, or is
            refused.
        uneven: slices at uneven distances, or with gaps, are refused, or interpolated onto an even grid.
        max_bytes: the largest volume to be read, as float32.

    Raises:
        ImageError: if anything in there that belongs to a volume cannot be read rightly, or no volume is
            there.
    """
    if padding not in ("air", "nan") or tilt not in ("affine", "resample", "refuse"):
        raise ImageError(
            f"padding is 'air' or 'nan', tilt 'affine', 'resample' or 'refuse'; not {padding!r}, {tilt!r}"
        )
    if uneven not in ("refuse", "resample"):
        raise ImageError(f"uneven is 'refuse' or 'resample'; not {uneven!r}")
    wish = Wish(padding, tilt, uneven, max_bytes)
    return _guarded(lambda: read_as(os.fspath(path), wish), ImageError)


def read_label(
    path: str | os.PathLike[str],
    like: Volume,
    classes: int | None = None,
    *,
    names: Mapping[str, int] | None = None,
    overlap: Literal["channels", "refuse", "later"] = "channels",
) -> Volume:
    """Return a label as whole numbers on the grid of the volume it belongs to.

    Args:
        path: a NIfTI file, a DICOM segmentation or structure set, or a folder that holds exactly one of them.
        like: the volume; the label's voxels are put in its order by their place in the patient.
        classes: how many classes the task has, 0 included; None takes any.
        names: the class of each segment or structure by its label; without it a segment's number is its
            class.
            Segments that it does not name are left out, with a line in `info.skipped`.
        overlap: segments that share voxels become a channel each, holding its class; or are refused; or the
            later
            number wins.

    Raises:
        LabelError: if the grids differ, or a value is no class of the task.
        ImageError: if the file cannot be read rightly.
    """
    from medfed.data.label import label_on

    return _guarded(lambda: label_on(os.fspath(path), like, classes, names, overlap), LabelError)


def _guarded(work: Callable[[], Result], kind: type[MedfedError]) -> Result:
    """Return what work returns; whatever else than our own errors escapes it becomes one, without its words.

    A foreign error may quote the header value or path that it tripped over, so neither its text nor its
    traceback goes
    on: it is raised outside of the handler and so has no context.
    """
    error: MedfedError | None = None
    try:
        with np.errstate(all="ignore"):  # numpy's warnings would say where in the data something overflows
            return work()
    except MedfedError as refusal:
        error = refusal
    except FileNotFoundError:
        error = kind("there is no such file or folder; check the path")
    except PermissionError:
        error = kind("the file or folder may not be read by this user; change its permissions")
    except OSError as trouble:
        error = kind(f"the file system refused to read the file (errno {trouble.errno}); check the disk")
    except MemoryError:
        error = kind("the image does not fit into this machine's memory")
    except Exception as trouble:
        error = kind(
            f"the file cannot be read ({type(trouble).__name__}); it is damaged, or of a kind not known here"
        )
    error.__context__ = None
    raise error.with_traceback(None)


def read_as(path: str, wish: Wish) -> list[Volume]:
    """Return what `read` does, its errors not yet guarded."""
    if stat.S_ISDIR(os.stat(path).st_mode):
        return _read_files(_files(path), wish)
    return _read_file(path, wish)


def _read_file(path: str, wish: Wish) -> list[Volume]:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("neither a file nor a folder; give one")
    if status.st_size == 0:
        raise ImageError("the file is empty (0 bytes); copy it again")
    if is_nifti(unpacked_head(_start(path))):
        return [read_nifti(path, wish.max_bytes, wish.free_voxels)]
    file = open_dicom(path)
    if file is None:
        raise ImageError(_unknown(_start(path)))
    if DIRECTORY in file.elements:
        return _read_files(listed_files(file), wish)
    other = other_object(file)
    if other is not None:
        raise ImageError(f"not an image that is read: {other}")
    volumes, skipped = volumes_of([file], wish)
    if not volumes:
        raise ImageError(f"no volume in there, but {skipped[0]}")
    return _with_lines(volumes, skipped)


def _unknown(start: bytes) -> str:
    if start[:2] == b"\x1f\x8b":
        return "a .gz file that holds no NIfTI, or is damaged at its beginning; copy it again"
    if start[:4] == _ZIP:
        return "a zip archive, which is not looked into; unpack it"
    if start[:4] in _ANALYZE:
        return (
            "not NIfTI: an Analyze header says no orientation, or the magic number is damaged;"
            " convert it to .nii"
        )
    return "neither DICOM nor NIfTI; convert it to one of them"


def _start(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(4096)


def _read_files(paths: list[str], wish: Wish) -> list[Volume]:
    skipped: list[str] = []
    files: list[DicomFile] = []
    niftis: list[str] = []
    files_seen: set[tuple[int, int]] = set()
    for file_path in sorted(set(paths)):
        name = os.path.basename(file_path)
        if os.path.islink(file_path) and not os.path.exists(file_path):
            skipped.append("a link to nothing")
            continue
        status = os.stat(file_path)
        if not stat.S_ISREG(status.st_mode):
            skipped.append("neither a file nor a folder")
        elif name.startswith("."):
            skipped.append("a hidden file")
        elif (status.st_dev, status.st_ino) in files_seen:
            skipped.append("a link to another of the files")
        elif status.st_size == 0:
            if Path(name).suffix.lower() in _NEVER_IMAGES:
                skipped.append("an empty file")
            else:
                raise ImageError(
                    "one of the files is empty (0 bytes), perhaps an image that was not copied; copy it again"
                )
        else:
            files_seen.add((status.st_dev, status.st_ino))
            file = open_dicom(file_path)
            if file is not None:
                other = other_object(file)
                files += [file] if other is None else []
                skipped += [other] if other is not None else []
            elif is_nifti(unpacked_head(_start(file_path))):
                niftis.append(file_path)
            else:
                skipped.append(_junk(name, _start(file_path)))
    volumes, lines = volumes_of(files, wish)
    skipped += lines
    volumes += [read_nifti(nifti, wish.max_bytes, wish.free_voxels) for nifti in niftis]
    if not volumes:
        found = (
            f": {len(skipped)} files are something else, the first {skipped[0]}"
            if skipped
            else " and no file"
        )
        raise ImageError(f"there is no volume{found}; name a DICOM or NIfTI file, or a folder of such")
    return _with_lines(volumes, skipped)


def _junk(name: str, start: bytes) -> str:
    """Return the line for a file that is no image.

    Raises:
        ImageError: if it looks as if it once was one.
    """
    if not start.strip(b"\0"):
        raise ImageError(
            "one of the files holds zeros only, perhaps an image that was not copied; copy it again"
        )
    if name.lower().endswith((".nii", ".nii.gz")):
        raise ImageError(f"one of the files is named as NIfTI, but is {_unknown(start)}")
    if start[:4] == _ZIP or start[:2] == b"\x1f\x8b":
        return "a packed archive (zip or gzip), which is not looked into; unpack it"
    if start[:4] in _ANALYZE:
        return "an Analyze image, whose header says no orientation"
    return "neither DICOM nor NIfTI"


def _with_lines(volumes: list[Volume], lines: list[str]) -> list[Volume]:
    return [replace(v, info=replace(v.info, skipped=(*v.info.skipped, *lines))) for v in volumes]


_ANALYZE = (b"\x5c\x01\0\0", b"\0\0\x01\x5c")  # its header's size, in either order of bytes
_ZIP = b"PK\x03\x04"
_NEVER_IMAGES = frozenset(
    (".txt", ".csv", ".tsv", ".json", ".xml", ".log", ".md", ".html", ".ini", ".db", ".py")
)


def _files(path: str) -> list[str]:
    def stop(error: OSError) -> None:
        raise error

    found = []
    seen = {os.path.realpath(path)}
    # Links to folders are followed, as research copies are made of them; each folder is entered once, so that
    # a link to one above ends.
    for folder, folders, names in os.walk(path, onerror=stop, followlinks=True):
        found += [os.path.join(folder, name) for name in names]
        new = {
            name: os.path.realpath(os.path.join(folder, name)) for name in sorted(skip_cache_folder(folders))
        }
        folders[:] = [name for name, real in new.items() if not (real in seen or seen.add(real))]  # type: ignore[func-returns-value]
    return found
