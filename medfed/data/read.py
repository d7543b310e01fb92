"""Entry points of the readers: `read` for the volumes of a file or folder, `read_label` for a label.

A volume is read correctly or refused. Nothing is guessed, repaired or omitted without a line in
`Volume.info.skipped`. Only the named file or folder is opened, never a file beside it (but a DICOMDIR, and a
header of MetaImage or NRRD, names the files it needs).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from medfed.data.class_names import Classes
from medfed.data.label import read_label_on_grid
from medfed.data.label_masks import read_masks_on_grid
from medfed.data.read_options import LabelOptions, Overlap, Padding, Pet, ReadOptions, Tilt, Uneven
from medfed.data.size_limits import MAX_VOLUME_BYTES
from medfed.data.volume import Volume
from medfed.data.volume_files import read_series, read_volumes
from medfed.errors import ImageError, LabelError, MedfedError

Result = TypeVar("Result")


def read(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    padding: Padding = "air",
    tilt: Tilt = "affine",
    uneven: Uneven = "refuse",
    pet: Pet = "stored",
    max_bytes: int = MAX_VOLUME_BYTES,
) -> list[Volume]:
    """Return every volume in a file or folder: DICOM series, NIfTI, MetaImage, NRRD, PNG, JPEG, TIFF.

    Each volume has an array of shape (C, X, Y, Z), float32, and a 4x4 affine from voxel indices to mm in the
    patient, RAS: x to the right, y to the front, z up. CT values are in HU. A picture is a volume of depth 1,
    in pixels, see medfed/data/pictures.py. Images that belong to no volume
    (localizers, reports, segmentations) are listed in `Volume.info.skipped`.

    Args:
        path: a DICOM file, a DICOMDIR, a file of another format, or a folder, which is searched recursively;
            or the files of one DICOM series, each of which must be readable; then no other is opened.
        padding: replacement for voxels that the DICOM header declares as padding. 'air' is -1000 HU in CT and
            the smallest value outside the padding in other modalities; 'nan' is NaN. Voxels that no slice
            covers after resampling a tilted CT are replaced in the same way.
        tilt: for a CT with a tilted gantry, 'affine' returns the sheared affine, 'resample' interpolates onto
            an upright grid, and 'refuse' raises.
        uneven: for slices at uneven distances or with gaps, 'refuse' raises and 'resample' interpolates onto
            an even grid.
        pet: values of PET: 'stored' in the unit of the files (Bq/ml, mostly), 'suv' as SUV by body weight,
            which raises if the header lacks what it needs; see data/dicom/suv.py. Of a format without a
            header of PET, such as NIfTI, 'suv' raises, as the unit of its values is unknown.
        max_bytes: size limit of one volume in bytes, as float32.

    Raises:
        ImageError: if no volume is found, or a file that belongs to a volume cannot be read correctly.
    """
    if padding not in ("air", "nan") or tilt not in ("affine", "resample", "refuse"):
        raise ImageError(
            f"padding is 'air' or 'nan', tilt 'affine', 'resample' or 'refuse'; not {padding!r}, {tilt!r}"
        )
    if uneven not in ("refuse", "resample"):
        raise ImageError(f"uneven is 'refuse' or 'resample'; not {uneven!r}")
    if pet not in ("stored", "suv"):
        raise ImageError(f"pet is 'stored' or 'suv'; not {pet!r}")
    options = ReadOptions(padding, tilt, uneven, pet, max_bytes)
    if isinstance(path, str | os.PathLike):
        whole = os.fspath(path)
        volumes = _sanitised_errors(lambda: read_volumes(whole, options), ImageError)
        _check_pet_unit(volumes, pet)
        return volumes
    files = [os.fspath(file) for file in path]
    return _sanitised_errors(lambda: read_series(files, options), ImageError)


def _check_pet_unit(volumes: Sequence[Volume], pet: Pet) -> None:
    """Raise an ImageError if SUV are wanted of a file that does not name its modality, so that may be PET."""
    if pet == "suv" and not all(volume.info.modality for volume in volumes):
        raise ImageError(
            "pet is 'suv' and the file names neither a modality nor a unit, so it may hold Bq/ml or SUV; "
            "give the DICOM series, or set data.read.pet to 'stored' if all hospitals' files hold one unit"
        )


def read_label(
    path: str | os.PathLike[str],
    like: Volume,
    classes: Classes = None,
    *,
    names: Mapping[str, int] | None = None,
    overlap: Overlap = "channels",
    resample: bool = False,
) -> Volume:
    """Return a label as class numbers on the grid of the volume it belongs to.

    The array has shape (1, X, Y, Z), or (C, X, Y, Z) for overlapping segments, an integer type, and the
    affine of `like`.

    Args:
        path: an image file, a DICOM segmentation or structure set, or a folder that contains exactly one.
        like: the volume. The label's axes are reordered and flipped to match it; a seg.nrrd that is
            cropped is put back.
        classes: number of classes of the task, including background (0); None accepts any. `ClassNames` are
            matched to the names that the file gives its segments or structures.
        names: class of each segment or structure by its label. Segments that are not in `names` are omitted
            and listed in `info.skipped`. Without `names`, the class is the segment's number.
        overlap: for segments that share voxels, 'channels' returns one channel per class, 'refuse' raises,
            and 'later' gives the voxel to the higher class number.
        resample: move an image of class numbers that is on another grid onto that of `like`, each voxel from
            the nearest one, with the flag `resampled`; otherwise it is refused.

    Raises:
        LabelError: if the grids differ, the label belongs to another patient, or a value is not a class.
        ImageError: if the file cannot be read correctly.
    """
    options = LabelOptions.of(classes, names, overlap, resample)
    return _sanitised_errors(lambda: read_label_on_grid(os.fspath(path), like, options), LabelError)


def read_masks(
    masks: Sequence[tuple[str, Path]],
    like: Volume,
    classes: Classes,
    *,
    overlap: Overlap = "refuse",
    resample: bool = False,
) -> Volume:
    """Return the label of several files as class numbers on the grid of the volume they belong to.

    Args:
        masks: per file the name of its structure, '' for a DICOM object, which names its own.
        like: as in `read_label`.
        classes: the task's classes by name.
        overlap: as in `read_label`.
        resample: as in `read_label`.

    Raises:
        LabelError: as `read_label`, and if two DICOM objects draw one class differently.
        ImageError: if a file cannot be read correctly.
    """
    options = LabelOptions.of(classes, None, overlap, resample)
    return _sanitised_errors(lambda: read_masks_on_grid(masks, like, options), LabelError)


def _sanitised_errors(work: Callable[[], Result], kind: type[MedfedError]) -> Result:
    """Return the result of `work`; raise any foreign error as `kind`, without its message.

    A foreign error may quote a header value or a path, so neither its message nor its traceback may escape.
    The replacement is raised outside the handler so that it has no context.
    """
    error: MedfedError | None = None
    try:
        with np.errstate(all="ignore"):  # numpy's warnings would say where in the data a value overflows
            return work()
    except MedfedError as refusal:
        error = refusal
    except FileNotFoundError:
        error = kind("there is no such file or folder; check the path")
    except PermissionError:
        error = kind("this user may not read the file or folder; change its permissions")
    except OSError as failure:
        error = kind(f"the file system could not read the file (errno {failure.errno}); check the disk")
    except MemoryError:
        error = kind("the image does not fit into this machine's memory")
    except Exception as failure:  # noqa: BLE001 - a foreign message may quote the file
        error = kind(
            f"the file cannot be read ({type(failure).__name__}); it is damaged or of an unsupported kind"
        )
    error.__context__ = None
    raise error.with_traceback(None)
