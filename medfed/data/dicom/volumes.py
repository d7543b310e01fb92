"""Volumes from DICOM images: files grouped into series, series split into stacks, stacks read into arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medfed.data.dicom import tags
from medfed.data.dicom.directory import describe_dicomdir
from medfed.data.dicom.file import DEFLATED, DicomFile
from medfed.data.dicom.frame import MODALITIES, PROJECTIONS, Frame, parse_frames
from medfed.data.dicom.pixels import AIR_HU, is_inverted, iter_words, stored_values, write_modality_values
from medfed.data.dicom.resample import correct_gantry_tilt, interpolated_slices, resample_even
from medfed.data.dicom.stack import Stack, build_stacks, is_projection, projection
from medfed.data.dicom.suv import suv_factor
from medfed.data.identity_digest import identity_digests
from medfed.data.read_options import ReadOptions
from medfed.data.size_limits import MAX_DICOM_RATIO, check_size
from medfed.data.volume import CAPTURE, PICTURE, Info, Volume
from medfed.errors import ImageError

_LABELS = (b"SEG", b"RTSTRUCT", b"RTDOSE", b"RTPLAN")
_CLASS = "1.2.840.10008.5.1.4.1.1."
# Objects that are not images of anatomy on their own grid, by SOP class: skipped with this note.
_NON_IMAGES: dict[str, str] = {
    "66.4": "a segmentation, which is a label: give it to read_label",
    "66.7": "a segmentation, which is a label: give it to read_label",
    "481.3": "a structure set, which is a label: give it to read_label",
    "481.2": "a radiotherapy dose",
    "481.5": "a radiotherapy plan",
    "66": "raw data or a registration",
    "66.1": "a spatial registration",
    "66.2": "spatial fiducials",
    "66.3": "a deformable registration",
    "66.5": "a surface segmentation",
    "4.2": "a spectroscopy",
    "88.59": "a key object selection",
}
_NON_IMAGE_FAMILIES: tuple[tuple[str, str], ...] = (
    ("7", "a secondary capture, a picture of a screen"),
    ("88", "a structured report"),
    ("11", "a presentation state"),
    ("9", "a waveform"),
    ("481", "a radiotherapy object"),
    ("77.1.5", "a photograph"),
    ("77.1.4", "a photograph"),
    ("104", "an encapsulated document"),
)


# Families of image objects: one of these without pixels was truncated. Manufacturers also store protocols and
# raw data under private classes.
_IMAGE_FAMILIES = tuple(
    f"{_CLASS}{family}"
    for family in ("1", "2", "3", "4", "5", "6", "12", "13", "14", "20", "30", "128", "130")
)


def describe_non_image(file: DicomFile) -> str | None:
    """Return a description of a DICOM object that is not a readable image, or None if it is one."""
    uid = file.elements.text(tags.SOP_CLASS).decode("ascii", "replace")
    modality = file.elements.text(tags.MODALITY)
    if tags.DIRECTORY in file.elements:
        return describe_dicomdir(file)
    if uid.startswith(_CLASS):
        rest = uid[len(_CLASS) :]
        if rest in _NON_IMAGES:
            return _NON_IMAGES[rest]
        for family, note in _NON_IMAGE_FAMILIES:
            if rest == family or rest.startswith(family + "."):
                return note
    if (
        uid
        and not uid.startswith(_IMAGE_FAMILIES)
        and not any(tag in file.elements for tag in (tags.ROWS, tags.PIXELS))
    ):
        return "an object without an image"
    if modality in (b"SR", b"PR", b"KO", b"SEG", b"RTSTRUCT", b"DOC"):
        return "a report, presentation state or label"
    samples = file.elements.integer(tags.SAMPLES)
    if samples is not None and samples != 1:
        return f"a colour picture of {samples} samples per pixel"
    if file.elements.text(tags.PHOTOMETRIC) == b"PALETTE COLOR":
        return "a colour picture with a palette"
    return None


# Modalities of slices, whose place a study needs; and objects that are pictures whatever was acquired.
_SLICES = (b"CT", b"MR", b"PT", b"NM")
_PICTURES = tuple(f"{_CLASS}{family}" for family in ("7", "77.1.4", "77.1.5"))


def is_placed_capture(file: DicomFile) -> bool:
    """Whether a secondary capture is a slice in grey with its full place in the patient.

    Research software (ITK without a SOP class) and workstations store volumes so, and screens have no place.
    Beside other volumes it is derived from these, and left out; where nothing else is, it is the volume.
    """
    header = file.elements
    return (
        header.text(tags.SOP_CLASS).decode("ascii", "replace").startswith(f"{_CLASS}7")
        and header.text(tags.MODALITY) in _SLICES
        and header.text(tags.PHOTOMETRIC) in (b"MONOCHROME1", b"MONOCHROME2")
        and (header.integer(tags.SAMPLES) or 1) == 1
        and tags.PIXELS in header
        and all(header.text(tag) for tag in (tags.POSITION, tags.ORIENTATION, tags.PIXEL_SPACING))
    )


def is_grey_picture(file: DicomFile) -> bool:
    """Whether a DICOM file is a picture in grey without a place in the patient: ultrasound, a digitised film.

    Such a file is read where it is named itself, or lies alone in its folder, as one in colour is.
    Radiographs are read everywhere, unless they were stored as a secondary capture.
    """
    header = file.elements
    secondary = header.text(tags.SOP_CLASS).decode("ascii", "replace").startswith(_PICTURES)
    modality = header.text(tags.MODALITY)
    return (
        tags.PIXELS in header
        and tags.PER_FRAME not in header
        and header.text(tags.PHOTOMETRIC) in (b"MONOCHROME1", b"MONOCHROME2")
        and not (header.text(tags.POSITION) and header.text(tags.ORIENTATION))
        and modality not in _LABELS
        and (secondary or (describe_non_image(file) is None and modality not in (*PROJECTIONS, *_SLICES)))
    )


def read_grey_picture(file: DicomFile, options: ReadOptions) -> Volume:
    """Return a picture in grey as a volume (1, X, Y, 1), in mm where its header gives PixelSpacing.

    Raises:
        ImageError: if it has several frames, or cannot be read correctly.
    """
    (frame,) = parse_frames(file)
    stack = projection(frame)
    return _volume(replace(stack, flags=(PICTURE, *stack.flags)), options)


# The keys of a series and of its patient.
_SeriesKey = tuple[tuple[object, ...], tuple[bytes, bytes, bytes]]


def assemble_volumes(files: Sequence[DicomFile], options: ReadOptions) -> tuple[list[Volume], list[str]]:
    """Return every volume in image files, and a note for each image that belongs to no volume.

    The files are images: `describe_non_image` returns None for each, or `is_placed_capture` is true.

    Raises:
        ImageError: if one of them cannot be read correctly.
    """
    series: dict[_SeriesKey, list[Frame]] = defaultdict(list)
    for file in files:
        for frame in parse_frames(file):
            series[frame.series_key, frame.patient].append(frame)
    _join_patients(series)
    volumes = []
    notes: list[str] = []
    for key in sorted(series, key=repr):
        stacks = [projection(frame) for frame in series[key] if is_projection(frame)]
        placed = [frame for frame in series[key] if not is_projection(frame)]
        placed_stacks, skipped = build_stacks(placed, _same_pixels, uneven=options.uneven == "resample")
        stacks += placed_stacks
        notes += skipped
        volumes += [_volume(stack, options) for stack in stacks]
    return volumes, notes


def _join_patients(series: dict[_SeriesKey, list[Frame]]) -> None:
    """Merge images with incomplete patient data into the same series of the only patient they can be of."""
    for key in sorted(series, key=lambda key: -sum(word == b"" for word in key[1])):
        series_key, patient = key
        others = [
            other
            for other in series
            if other != key
            and other[0] == series_key
            and any(patient) != all(patient)
            and all(mine in (b"", theirs) for mine, theirs in zip(patient, other[1], strict=True))
        ]
        if len(others) == 1 and any(patient):
            series[others[0]] += series.pop(key)


def _same_pixels(one: Frame, other: Frame) -> bool:
    alike = (one.slope, one.intercept, one.lut) == (other.slope, other.intercept, other.lut)
    return alike and bool(np.array_equal(stored_values(one), stored_values(other)))


def _volume(stack: Stack, options: ReadOptions) -> Volume:
    frames = stack.frames
    first = frames[0]
    flags = [*stack.flags, *(flag for frame in frames for flag in frame.flags), *_check_rescale(frames)]
    if is_inverted(first):
        flags.append("inverted")
    if any(is_placed_capture(file) for file in {id(frame.file): frame.file for frame in frames}.values()):
        flags.append(CAPTURE)
    _check_stack_size(frames, options)
    array = np.empty((len(frames), first.encoding.rows, first.encoding.columns), np.float32)
    background = _fill(array, frames, options)
    padded = any(frame.padding is not None for frame in frames)
    if options.padding == "nan" and padded and np.isnan(array).any():
        flags.append("nan")
    if options.pet == "suv" and first.modality == b"PT":
        factor = suv_factor([frame.file.elements for frame in frames])
        array *= np.float32(factor)
        background *= factor
        flags.append("suv")
    array, affine, geometry_flags = _apply_geometry(array, stack, background, options)
    flags += geometry_flags
    header = first.file.elements
    identities = identity_digests(
        header.text(tags.PATIENT_ID), [header.text(tags.FRAME_UID)], [header.text(tags.SERIES_UID)]
    )
    modality = first.modality.decode("ascii", "replace") if first.modality in MODALITIES else ""
    echo_ms = first.echo_ms or 0.0
    between = () if stack.uneven_mm is None else interpolated_slices(stack.uneven_mm)
    unique_flags = tuple(dict.fromkeys(flags))
    info = Info(modality, stack.skipped, unique_flags, identities, echo_ms=echo_ms, interpolated=between)
    return Volume(array.transpose(2, 1, 0)[None], affine, info)


def _check_stack_size(frames: Sequence[Frame], options: ReadOptions) -> None:
    encoding = frames[0].encoding
    voxels = len(frames) * encoding.rows * encoding.columns
    packed = [frame.file for frame in frames if frame.file.encapsulated or frame.file.syntax == DEFLATED]
    sizes = {file.path: file.size for file in packed}
    packed_bytes = sum(sizes.values()) if len(packed) == len(frames) else None
    unpacked = voxels * encoding.allocated // 8
    check_size(unpacked, packed_bytes, voxels, "a series", options.max_bytes, max_ratio=MAX_DICOM_RATIO)


def _apply_geometry(
    array: NDArray[np.float32], stack: Stack, background: float, options: ReadOptions
) -> tuple[NDArray[np.float32], NDArray[np.float64], list[str]]:
    """Return the array, its affine and flags, with uneven or tilted slices resampled as the options say.

    Raises:
        ImageError: if the gantry is tilted and the options refuse that.
    """
    affine = stack.affine_ras
    flags = ["tilt"] if stack.sheared else []
    if stack.sheared and options.tilt == "refuse":
        raise ImageError(
            f"{_tilt_message(affine)}; data.read.tilt is 'refuse' in the study or the site file; 'affine' or"
            " 'resample' reads it"
        )
    if stack.uneven_mm is not None:
        array, affine = resample_even(array, affine, stack.uneven_mm)
        flags.append("resampled")
    if stack.sheared and options.tilt == "resample":
        array, affine = correct_gantry_tilt(array, affine, np.nan if options.padding == "nan" else background)
        flags += ["resampled", "nan"] if options.padding == "nan" else ["resampled"]
    return array, affine, flags


def _tilt_message(affine: NDArray[np.float64]) -> str:
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    step = affine[:3, 2]
    cosine = abs(step @ normal) / np.linalg.norm(normal) / np.linalg.norm(step)
    return (
        f"the gantry is tilted: slices are offset by {np.degrees(np.arccos(min(1.0, cosine))):.1f} degrees"
        " from their normal"
    )


def _check_rescale(frames: Sequence[Frame]) -> list[str]:
    """Refuse implausible rescale attributes; return a flag for a CT without any, or not in HU.

    Raises:
        ImageError: naming the element.
    """
    flags = []
    for frame in frames:
        if frame.slope == 0:
            raise ImageError(
                "RescaleSlope (0028,1053) is 0, which makes every voxel alike; correct the header"
            )
        if (frame.slope is None) != (frame.intercept is None) and frame.lut is None:
            raise ImageError("only one of RescaleSlope and RescaleIntercept is present; correct the header")
        if frame.lut is not None and frame.slope is not None and (frame.slope, frame.intercept) != (1.0, 0.0):
            raise ImageError(
                "both a ModalityLUTSequence and a RescaleSlope are present; only one can apply, correct it"
            )
    if len({(frame.slope is None, frame.lut is None, frame.rescale_type) for frame in frames}) > 1:
        raise ImageError(
            "some images of a series have a RescaleSlope, LUT or RescaleType that others lack; export it"
            " again"
        )
    if frames[0].modality == b"CT" and frames[0].slope is None and frames[0].lut is None:
        flags.append("no_rescale")
    if frames[0].modality == b"CT" and frames[0].rescale_type not in (b"", b"HU"):
        flags.append("not_hu")
    return flags


def _fill(array: NDArray[np.float32], frames: Sequence[Frame], options: ReadOptions) -> float:
    """Read every frame into `array`, (slices, rows, columns), and return the value of air."""
    ct = frames[0].modality == b"CT"
    padding = float("nan") if options.padding == "nan" or not ct else AIR_HU
    padded = []
    for plane, frame, words in zip(array, frames, iter_words(frames), strict=True):
        write_modality_values(words, frame, padding, plane)
        if frame.padding is not None and not ct:
            padded.append(plane)
        if frame.encoding.frames == 1:
            frame.file.memo.clear()
    air = AIR_HU
    if not ct:
        # Only CT defines a value of air; in others the smallest value outside the padding replaces it.
        with np.errstate(invalid="ignore"):
            air = float(np.nanmin(array)) if np.isfinite(array).any() else 0.0
        if options.padding == "air":
            for plane in padded:
                plane[np.isnan(plane)] = air
    return air
