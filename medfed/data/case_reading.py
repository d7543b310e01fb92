"""A case's images and label as they are in its files, all channels on one grid; refusals name its token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from medfed.data.case import Case, Echo, ImageSource, is_there, paths_of
from medfed.data.class_names import Classes
from medfed.data.folder_options import FolderOptions
from medfed.data.reading import Reading
from medfed.data.refusals import (
    ChannelCountError,
    ChannelGridError,
    MissingImageError,
    MissingLabelError,
    SeveralVolumesError,
    of_case,
)
from medfed.data.regrid import moved_channel
from medfed.data.settings import Images
from medfed.data.volume import COLOUR, Volume
from medfed.errors import ImageError, LabelError

# Two channels of one case share a grid if no corner differs by more than this fraction of the smallest voxel
# edge.
GRID_TOLERANCE_VOXELS = 0.05


def read_case(
    case: Case, settings: Images | FolderOptions | None, classes: Classes
) -> tuple[Volume, Volume | None]:
    """Return a case's image, with all channels on one grid, and its label, as they are in the files.

    Without a study's settings any number of channels will do, and of several structures in one voxel the
    last is taken.

    Raises:
        ImageError, LabelError: naming the case by token.
    """
    from medfed.data.read import read_label, read_masks

    with naming(case):
        check_files(case)
        image = read_image(case.image, settings)
        channels = image.array.shape[0]
        if isinstance(settings, Images) and channels != settings.inputs:
            raise ChannelCountError(
                f"the image has {channels} channels, the study's data.channels is {settings.inputs}"
                f"{_about_colour(image, settings)}"
            )
        label = None
        overlap = settings.read.overlap if isinstance(settings, Images) else "later"
        resample = settings is not None and settings.resample_labels
        if case.label is not None:
            with _as_label_errors():
                label = read_label(case.label, image, classes, overlap=overlap, resample=resample)
        elif case.masks:
            with _as_label_errors():
                label = read_masks(case.masks, image, classes, overlap=overlap, resample=resample)
    return image, label


def _about_colour(image: Volume, settings: Images) -> str:
    """Return what a refusal adds for an image in colour in a study of grey ones, or ''."""
    if COLOUR not in image.info.flags or settings.inputs != 1:
        return ""
    if (image.array == image.array[:1]).all():
        return "; it is grey and stored in colour, its three channels are alike: export it in one channel"
    return "; it is in colour: leave it out, export it in grey, or set data.channels to 3 for all images"


@contextmanager
def naming(case: Case) -> Iterator[None]:
    """Name a case by its token in any refusal of it."""
    try:
        yield
    except ImageError as error:
        raise of_case(error, case.token) from None


@contextmanager
def _as_label_errors() -> Iterator[None]:
    """Raise the plain refusal of a label's file as one of a label, so that it is counted as such."""
    try:
        yield
    except ImageError as error:
        if type(error) is not ImageError:
            raise
        raise LabelError(f"its label: {error}") from None


def check_files(case: Case) -> None:
    """Raise if a file of a case is not there, or its folder holds several for one.

    Raises:
        MissingImageError, MissingLabelError, or the kind of its fault: without the case's name.
    """
    if case.fault is not None:
        raise case.fault.kind(case.fault.message)
    remedy = "correct its path in the table, or restore the file"
    lacking = [str(number) for number, source in enumerate(case.image, start=1) if source == ()]
    if lacking and len(case.image) > 1:
        raise MissingImageError(
            f"it has no file for channel {' and '.join(lacking)} of {len(case.image)}, which other cases "
            "have; restore the file, or remove the case"
        )
    if lacking:
        raise MissingImageError("there is a label of this name and no image; restore the image")
    if not all(is_there(path) for source in case.image for path in paths_of(source)):
        raise MissingImageError(f"its image is not there; {remedy}")
    labels = (*(() if case.label is None else (case.label,)), *(path for _, path in case.masks))
    if not all(is_there(path) for path in labels):
        raise MissingLabelError(f"its label is not there; {remedy}")


def moved_parts(image: Volume, label: Volume | None) -> tuple[str, ...]:
    """Return which parts of a case `read_case` moved onto its image's grid: `label`, `channels`."""
    label_moved = label is not None and "resampled" in label.info.flags
    channels_moved = "resampled_channels" in image.info.flags
    return (("label",) if label_moved else ()) + (("channels",) if channels_moved else ())


def moved_line(part: str, count: int, cases: int) -> str:
    """Return the line that tells in how many cases a part was moved onto the image's grid."""
    return f"{count} of {cases} cases: {part} resampled from another grid onto the image"


def read_image(paths: Sequence[ImageSource | str], settings: Images | FolderOptions | None = None) -> Volume:
    """Return one volume of all channels, which are on one grid; each source holds one volume.

    The settings say how a study reads; without them the reader's defaults hold.

    Raises:
        ImageError: if a path is refused or holds several volumes, or the channels' grids differ.
    """
    from medfed.data.read import read

    reading = _reading(settings)
    channels: list[Volume] = []
    if () in paths:
        raise MissingImageError("it has no file for one of its channels")
    for path in paths:
        volumes = read(
            path.path if isinstance(path, Echo) else path,
            padding=reading.padding,
            tilt=reading.tilt,
            uneven=reading.uneven,
            pet=reading.pet,
            max_bytes=reading.max_bytes,
        )
        if isinstance(path, Echo):
            volumes = [one for one in volumes if one.info.echo_ms == path.echo_ms]
        if len(volumes) != 1:
            raise SeveralVolumesError(
                f"its image holds {len(volumes)} volumes, expected one: several series, or echoes, time "
                "points or phases of one; put the files of each (one EchoTime, TemporalPositionIdentifier or "
                "AcquisitionNumber) into a folder of its own, and name the one that is meant, or each as a "
                "channel, by `layout: {kind: pattern, image: {NAME: '{patient}/NAME/'}}`; echoes in "
                "DICOM series can be chosen where they lie, by `layout: {kind: dicom_tree, series: [{name: "
                "NAME, echo_ms: [LOWEST, HIGHEST]}]}`"
            )
        channels += volumes
    _check_pet(channels, reading)
    first = channels[0]
    if len(channels) == 1:
        return first
    flags: tuple[str, ...] = ()
    for number, other in enumerate(channels[1:], start=2):
        try:
            check_same_grid(first, other, number)
        except ChannelGridError:
            if settings is None or not settings.resample_channels:
                raise
            channels[number - 1] = moved_channel(first, other, number)
            flags = ("resampled_channels",)
    flags = tuple(dict.fromkeys([*flags, *(flag for one in channels for flag in one.info.flags)]))
    array = np.concatenate([one.array for one in channels])
    # Such as CT+PT: what holds for CT alone, like a window in HU, does not hold for all channels.
    modality = "+".join(dict.fromkeys(one.info.modality for one in channels if one.info.modality))
    return Volume(array, first.affine_ras, replace(first.info, modality=modality, flags=flags))


def _check_pet(channels: Sequence[Volume], reading: Reading) -> None:
    """Raise an ImageError if a study reads SUV and no channel of a case holds any."""
    if reading.pet == "suv" and not any("suv" in one.info.flags for one in channels):
        raise ImageError(
            "data.read.pet is 'suv' and the image is no PET series; leave the case out, or set it to 'stored'"
        )


def _reading(settings: Images | FolderOptions | None) -> Reading:
    return Reading() if settings is None else settings.read


def check_same_grid(first: Volume, other: Volume, number: int) -> None:
    """Raise a ChannelGridError if channel `number` is not on the grid of channel 1."""
    corners = np.array(
        [[i, j, k, 1] for i in (0, first.shape[0]) for j in (0, first.shape[1]) for k in (0, first.shape[2])]
    )
    distance_mm = np.abs(corners @ (first.affine_ras - other.affine_ras).T).max()
    if first.shape != other.shape or distance_mm > GRID_TOLERANCE_VOXELS * min(first.spacing_mm):
        raise ChannelGridError(
            f"channel {number} lies on another grid than channel 1 (shape {other.shape} against "
            f"{first.shape}, up to {distance_mm:.2f} mm apart); register and resample the channels to one "
            "grid, or, if they are registered, set data.resample_channels in the study"
        )
