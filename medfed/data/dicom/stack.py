"""Stacks of slices: the frames of one volume in order, and their common affine, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfed.data.dicom.frame import PROJECTIONS, Frame
from medfed.data.dicom.split_series import (
    JITTER_FRACTION,
    JITTER_MM,
    SamePixels,
    positions_lps,
    slice_normal,
    split_by_hard_key,
    split_volumes,
)
from medfed.errors import ImageError

# Direction cosines of one stack may differ by this: scanners that write four decimals vary by one or two
# units of the last from slice to slice.
DIRECTION_TOLERANCE = 2.5e-4
# But that must not move a corner of the slice by more than this fraction of a pixel.
CORNER_TOLERANCE_PIXELS = 0.2
# An image rotated against the others by more than this (6 degrees) is intended: a localizer, or another
# plane. One rotated by less is a slice that does not fit its stack.
MIN_INTENDED_TURN = 0.1
SPACING_TOLERANCE = 1e-4
# A stack whose slices shift sideways by more than this over its length was acquired with a tilted gantry.
TILT_MM = 0.05
# Sideways shift per distance along the normal: gantries tilt by up to 30 degrees, which is 0.6; beyond 63
# degrees positions and orientation contradict each other.
MAX_SLOPE = 2.0


@dataclass(frozen=True, slots=True)
class Stack:
    """Frames of one volume in the order of their position, and the affine of their voxels."""

    frames: tuple[Frame, ...]
    affine_ras: NDArray[np.float64]  # maps (column, row, slice) to mm
    sheared: bool
    # The distance of each slice from the first along the normal, or None if the slices are even.
    uneven_mm: tuple[float, ...] | None
    flags: tuple[str, ...]
    skipped: tuple[str, ...]


def build_stacks(
    frames: Sequence[Frame], same_pixels: SamePixels, *, uneven: bool
) -> tuple[list[Stack], list[str]]:
    """Return the stacks of one series, and a note for each frame that belongs to none.

    Args:
        frames: frames of one patient and series, in any order.
        same_pixels: whether two frames hold the same values.
        uneven: whether uneven slices are accepted, because the caller resamples them.

    Raises:
        ImageError: if frames are missing, contradict each other or have different sizes.
    """
    images, skipped = _images(frames)
    clusters = [cluster for part in split_by_hard_key(images) for cluster in _group_by_orientation(part)]
    largest = max(clusters, key=len, default=[])
    stacks = []
    for cluster in clusters:
        if len(cluster) == 1 and len(largest) >= 3 and not _parallel(cluster[0], largest[0]):
            _check_rotation(cluster[0], largest[0])
            skipped.append("a single image in another orientation than the others, like a localizer")
        else:
            stacks += [_stack(volume, notes, uneven) for volume, notes in split_volumes(cluster, same_pixels)]
    return stacks, skipped


def _images(frames: Sequence[Frame]) -> tuple[list[Frame], list[str]]:
    """Return the frames that may be slices of a volume, and a note for each other frame."""
    images, skipped = [], []
    types = {frame.image_type for frame in frames if frame.position_mm is not None}
    for frame in frames:
        if b"LOCALIZER" in frame.image_type:
            skipped.append(
                f"a localizer of {frame.encoding.rows} x {frame.encoding.columns} pixels, no part of a volume"
            )
        elif (
            b"SECONDARY" in frame.image_type
            and frame.position_mm is None
            and frame.axes is None
            and types
            and frame.image_type not in types
        ):
            skipped.append("a secondary image without a position, unlike the series' other images")
        else:
            images.append(frame)
    return images, skipped


def _check_rotation(frame: Frame, other: Frame) -> None:
    """Refuse an image that is rotated against the others by too little to be intended.

    Raises:
        ImageError: naming the angle.
    """
    turn = _directions(frame) @ _directions(other).T  # 1, 1 on the diagonal where they are parallel
    angle = float(np.degrees(np.arccos(np.clip(min(turn[0, 0], turn[1, 1]), -1, 1))))
    if angle < np.degrees(MIN_INTENDED_TURN):
        raise ImageError(
            f"one slice is rotated by {angle:.3f} degrees against the others of the series, which moves its"
            f" corner by {_corner_distance_mm(frame, other):.3f} mm off their grid; export the series again"
        )


def _group_by_orientation(frames: list[Frame]) -> list[list[Frame]]:
    """Return the frames in groups of one orientation.

    Raises:
        ImageError: if a frame has no position, or one orientation has several sizes or spacings.
    """
    clusters: list[list[Frame]] = []
    for frame in frames:
        _check_geometry(frame, frames)
        for cluster in clusters:
            if _parallel(cluster[0], frame):
                cluster.append(frame)
                break
        else:
            clusters.append([frame])
    main = max(clusters, key=len)
    for cluster in clusters:
        if cluster is not main and len(main) >= 3:
            _check_rotation(cluster[0], main[0])
    for cluster in clusters:
        _check_grids(cluster)
    return clusters


def _check_geometry(frame: Frame, frames: list[Frame]) -> None:
    if frame.position_mm is None or frame.axes is None:
        missing = sum(f.position_mm is None or f.axes is None for f in frames)
        raise ImageError(
            f"{missing} of {len(frames)} images lack ImagePositionPatient or ImageOrientationPatient, so that"
            " the position of their voxels is unknown; export the series with its geometry"
        )
    if frame.spacing_mm is None:
        raise ImageError(
            "an image lacks PixelSpacing, so that its size in mm is unknown; export it with its geometry"
        )


def _check_grids(cluster: list[Frame]) -> None:
    """Raise ImageError if frames of one orientation differ in size or pixel spacing."""
    sizes = sorted({(f.encoding.rows, f.encoding.columns) for f in cluster})
    if len(sizes) > 1:
        raise ImageError(
            f"one series mixes images of {' and '.join(f'{r} x {c}' for r, c in sizes)} pixels in one"
            " orientation; separate them"
        )
    spacings = np.array([f.spacing_mm for f in cluster])
    if np.ptp(spacings, axis=0).max() > SPACING_TOLERANCE * spacings.min():
        low, high = spacings.min(axis=0), spacings.max(axis=0)
        raise ImageError(
            f"one series mixes pixel spacings from {low[0]:g} x {low[1]:g} to {high[0]:g} x {high[1]:g} mm;"
            " separate them"
        )


def _parallel(one: Frame, other: Frame) -> bool:
    if one.axes == other.axes:
        return True
    if np.abs(_directions(one) - _directions(other)).max() > DIRECTION_TOLERANCE:
        return False
    return _corner_distance_mm(one, other) <= CORNER_TOLERANCE_PIXELS * min(one.spacing_mm or (1.0, 1.0))


def _corner_distance_mm(one: Frame, other: Frame) -> float:
    """Return the distance of the last corners of two images whose first pixels coincide."""
    rows_mm, columns_mm = one.spacing_mm or (1.0, 1.0)
    across = np.array([one.encoding.columns * columns_mm, one.encoding.rows * rows_mm])
    return float(np.linalg.norm(across @ (_directions(one) - _directions(other))))


def _directions(frame: Frame) -> NDArray[np.float64]:
    return np.array(frame.axes)


def _stack(frames: list[Frame], notes: list[str], uneven: bool) -> Stack:
    """Return the frames of one volume with their affine.

    Raises:
        ImageError: if a slice is missing or the slices are uneven, naming the positions.
    """
    first = frames[0]
    normal = slice_normal(first)
    positions = positions_lps(frames)
    uneven_mm = None
    if len(frames) == 1:
        step = normal * _single_thickness(first)
    else:
        step = (positions[-1] - positions[0]) / (len(frames) - 1)
        uneven_mm = _uneven_distances(positions, normal, uneven)
    sideways = step - normal * (step @ normal)
    if float(np.linalg.norm(sideways)) > MAX_SLOPE * float(step @ normal):
        raise ImageError(
            f"the slices shift {np.linalg.norm(sideways):.2f} mm sideways per {step @ normal:.2f} mm along"
            " their normal; no gantry tilts so far, export the series again"
        )
    sheared = len(frames) > 1 and float(np.linalg.norm(sideways)) * (len(frames) - 1) > TILT_MM
    affine = _affine_ras(first, step, positions[0])
    flags = ("single_slice",) if len(frames) == 1 else ()
    return Stack(tuple(frames), affine, sheared, uneven_mm, flags, tuple(notes))


def _affine_ras(
    frame: Frame, step_lps: NDArray[np.float64], origin_lps: NDArray[np.float64]
) -> NDArray[np.float64]:
    rows_mm, columns_mm = frame.spacing_mm or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, :2] = (_directions(frame) * [[columns_mm], [rows_mm]]).T
    affine[:3, 2] = step_lps
    affine[:3, 3] = origin_lps
    affine[:2] *= -1  # LPS, as DICOM has it, to RAS
    return affine


def _uneven_distances(
    positions: NDArray[np.float64], normal: NDArray[np.float64], accepted: bool
) -> tuple[float, ...] | None:
    """Return the distance of each slice from the first along the normal, or None if the slices are even.

    Raises:
        ImageError: if the slices are uneven and that is not accepted, or do not lie on one line.
    """
    count = len(positions)
    step = (positions[-1] - positions[0]) / (count - 1)
    even = positions[0] + np.arange(count)[:, None] * step
    tolerance_mm = max(JITTER_MM, JITTER_FRACTION * float(step @ normal))
    if np.linalg.norm(positions - even, axis=1).max() <= tolerance_mm:
        return None
    along = (positions - positions[0]) @ normal
    straight = positions[0] + (along / along[-1])[:, None] * (positions[-1] - positions[0])
    beside = float(np.linalg.norm(positions - straight, axis=1).max())
    if beside > tolerance_mm:
        raise ImageError(
            f"the slices do not lie on one line: one is {beside:.2f} mm off it, with {count} slices"
            f" {float(step @ normal):.2f} mm apart; export the series again"
        )
    if not accepted:
        raise ImageError(_uneven_message(along))
    return tuple(float(value) for value in along)


def _single_thickness(frame: Frame) -> float:
    if frame.thickness_mm is not None:
        return frame.thickness_mm
    raise ImageError(
        "a single image with neither SpacingBetweenSlices nor SliceThickness: its thickness is unknown; give"
        " the whole series"
    )


def _uneven_message(along: NDArray[np.float64]) -> str:
    steps = np.diff(along)
    ratios = steps / steps.min()
    gaps_only = bool(np.abs(ratios - np.rint(ratios)).max() < 0.02)
    # With few slices and gaps the median may be a gap. If all steps are multiples of the smallest, that is
    # the usual one, unless it occurs once among many: a last slice that overlaps.
    gaps_only &= int((np.rint(ratios) == 1).sum()) > 1 or len(steps) < 4
    usual = float(np.median(steps[np.rint(ratios) == 1]) if gaps_only else np.median(steps))
    odd = [
        i for i in range(len(steps)) if abs(steps[i] - usual) > max(2 * JITTER_MM, JITTER_FRACTION * usual)
    ]
    if not odd:  # small steps that add up: name the largest
        odd = [int(np.abs(steps - usual).argmax())]
    places = ", ".join(f"{steps[i]:.2f} mm from {along[i]:.2f} to {along[i + 1]:.2f} mm" for i in odd[:4])
    whole = all(
        abs(steps[i] / usual - round(steps[i] / usual)) < 0.02 and steps[i] > 1.5 * usual for i in odd
    )
    missing = sum(round(steps[i] / usual) - 1 for i in odd)
    count = "1 slice is" if missing == 1 else f"{missing} slices are"
    what = f"{count} missing" if whole else "the slices are uneven"
    more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
    return (
        f"{what}: {len(along)} slices are usually {usual:.2f} mm apart, but {places}{more} (from the first"
        " slice); complete the series, or set data.read.uneven to 'resample' in the"
        " study (and not to 'refuse' in the site file)"
    )


def projection(frame: Frame) -> Stack:
    """Return the stack of one radiograph or other picture, which has no position in the patient.

    PixelSpacing is taken where it is there (it may be calibrated), else ImagerPixelSpacing, that of the
    detector, in front of which the body is smaller. Without either the image is in pixels, as PNG is.
    """
    rows_mm, columns_mm = frame.spacing_mm or (1.0, 1.0)
    flags = ("projection", "single_slice", *(() if frame.spacing_mm else ("pixels",)))
    return Stack((frame,), np.diag([-columns_mm, -rows_mm, 1.0, 1.0]), False, None, flags, ())


def is_projection(frame: Frame) -> bool:
    """Whether a frame is a radiograph without a position in the patient."""
    return frame.modality in PROJECTIONS and (frame.position_mm is None or frame.axes is None)
