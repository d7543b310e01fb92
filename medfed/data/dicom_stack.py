"""Which frames make one volume, in which order, and where it lies; refused where the frames do not say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medfed.data.dicom_frame import PROJECTIONS, Frame
from medfed.data.dicom_siemens import has_tiles
from medfed.errors import ImageError

# Two slices closer than this are one position written twice; scanners write positions to 0.001 or 0.01 mm.
SAME_POSITION_MM = 0.01
# How far a slice may lie from the even grid: 0.01 mm for positions that jitter as they are written, and 1 %
# of the slice distance, which moves no voxel to a neighbour.
JITTER_MM, JITTER_FRACTION = 0.01, 0.01
# Direction cosines of one stack: six written decimals, and the noise of a scanner's own arithmetic.
SAME_DIRECTION = 1e-4
SAME_SPACING = 1e-4
# A stack whose slices slide sideways more than this over its whole length was taken with a tilted gantry.
TILT_MM = 0.05
# Gantries tilt by up to 30 degrees, a slide of 0.6; beyond 63 degrees positions and orientation contradict each other.
MAX_SLIDE = 2.0


@dataclass(frozen=True, slots=True)
class Stack:
    """Frames of one volume in the order of their position, and the affine of their voxels."""

    frames: tuple[Frame, ...]
    affine_ras: NDArray[np.float64]  # maps (column, row, slice) to mm
    sheared: bool
    # The distance of each slice from the first along the normal, for slices that are not even; None where
    # they are.
    uneven_mm: tuple[float, ...] | None
    flags: tuple[str, ...]
    skipped: tuple[str, ...]


def stacks_of(
    frames: Sequence[Frame], same_pixels: Callable[[Frame, Frame], bool], *, uneven: bool
) -> tuple[list[Stack], list[str]]:
    """Return the volumes among the frames of one series, and a line for each frame that is no part of one.

    Args:
        frames: of one patient, study, series and frame of reference, in any order.
        same_pixels: whether two frames hold the same values.
        uneven: whether uneven slices are wanted nevertheless, to be resampled.

    Raises:
        ImageError: if frames are missing, in conflict or of different sizes.
    """
    skipped: list[str] = []
    images = []
    for frame in frames:
        if any(b"MOSAIC" in part.upper() for part in frame.image_type) or has_tiles(frame.file.elements):
            raise ImageError(
                "a Siemens mosaic: one image holds all slices as tiles, and their places are in no"
                " public element;"
                " export it as enhanced MR or convert it with dcm2niix"
            )
        if b"LOCALIZER" in frame.image_type:
            skipped.append(
                f"a localizer of {frame.encoding.rows} x {frame.encoding.columns} pixels, no part of a volume"
            )
        else:
            images.append(frame)
    parts = [
        _oriented(part) for _, part in sorted(_by(images, lambda frame: frame.splits).items(), key=_first_key)
    ]
    stacks = []
    for clusters in parts:
        largest = max(len(cluster) for cluster in clusters)
        for cluster in clusters:
            if len(cluster) == 1 and largest >= 3:
                skipped.append("a single image across the others' orientation, as a localizer has it")
            else:
                stacks += [
                    _stack(volume, lines, uneven) for volume, lines in _volumes(cluster, same_pixels, uneven)
                ]
    return stacks, skipped


def _by(frames: Iterable[Frame], key: Callable[[Frame], object]) -> dict[object, list[Frame]]:
    groups: dict[object, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[key(frame)].append(frame)
    return groups


def _first_key(entry: tuple[object, list[Frame]]) -> tuple:
    return _rank(entry[0])


def _rank(value: object) -> tuple:
    """Return a key that sorts numbers, and texts that are numbers, by their size, and anything else"
    " behind them."""
    if isinstance(value, tuple):
        return (2, 0.0, "", tuple(_rank(part) for part in value))
    if isinstance(value, int | float):
        return (0, float(value), "", ())
    if isinstance(value, bytes):
        with suppress(ValueError):
            return (0, float(value), "", ())
    return (1, 0.0, repr(value), ())


def _oriented(frames: list[Frame]) -> list[list[Frame]]:
    """Return the frames in groups of one orientation.

    Raises:
        ImageError: if a frame has no place, or one orientation comes in several sizes.
    """
    clusters: list[list[Frame]] = []
    for frame in frames:
        if frame.position_mm is None or frame.row_cosine is None or frame.column_cosine is None:
            raise ImageError(
                f"{sum(f.position_mm is None or f.row_cosine is None for f in frames)} of"
                f" {len(frames)} images lack"
                " ImagePositionPatient or ImageOrientationPatient, so that no voxel has a place;"
                " export the series"
                " with its geometry"
            )
        if frame.spacing_mm is None:
            raise ImageError(
                "an image lacks PixelSpacing, so that it has no size in mm; export it with its geometry"
            )
        for cluster in clusters:
            if _parallel(cluster[0], frame):
                cluster.append(frame)
                break
        else:
            clusters.append([frame])
    for cluster in clusters:
        sizes = sorted({(f.encoding.rows, f.encoding.columns) for f in cluster})
        if len(sizes) > 1:
            raise ImageError(
                f"one series mixes images of {' and '.join(f'{r} x {c}' for r, c in sizes)} pixels in"
                " one orientation;"
                " separate them"
            )
        spacings = np.array([f.spacing_mm for f in cluster])
        if np.ptp(spacings, axis=0).max() > SAME_SPACING * spacings.min():
            low, high = spacings.min(axis=0), spacings.max(axis=0)
            raise ImageError(
                f"one series mixes pixel spacings from {low[0]:g} x {low[1]:g} to {high[0]:g} x"
                f" {high[1]:g} mm;"
                " separate them"
            )
    return clusters


def _parallel(one: Frame, other: Frame) -> bool:
    a = np.array([one.row_cosine, one.column_cosine])
    b = np.array([other.row_cosine, other.column_cosine])
    return bool(np.abs(a - b).max() <= SAME_DIRECTION)


def _normal(frame: Frame) -> NDArray[np.float64]:
    normal = np.cross(np.asarray(frame.row_cosine), np.asarray(frame.column_cosine))
    return normal / np.linalg.norm(normal)


def _positions(frames: Sequence[Frame]) -> NDArray[np.float64]:
    return np.array([frame.position_mm for frame in frames], np.float64)


def _levels(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Return the frames grouped by their place along the normal, in its order."""
    along = _positions(frames) @ _normal(frames[0])
    levels: list[list[Frame]] = []
    last = -np.inf
    for i in np.argsort(along, kind="stable"):
        if along[i] - last > SAME_POSITION_MM:
            levels.append([])
            last = along[i]
        levels[-1].append(frames[i])
    return levels


def _volumes(
    frames: list[Frame], same_pixels: Callable[[Frame, Frame], bool], uneven: bool
) -> list[tuple[list[Frame], list[str]]]:
    """Return the frames in volumes that hold each position once, and what was dropped of each.

    Raises:
        ImageError: if two images claim one position and nothing in their headers tells them apart.
    """
    lines: list[str] = []
    frames, dropped = _without_copies(frames, same_pixels)
    lines += dropped
    levels = _levels(frames)
    most = max(len(level) for level in levels)
    if most == 1:
        return [([level[0] for level in levels], lines)]
    if all(len(level) == most for level in levels):
        parts = _told_apart(frames, len(levels), most)
        if parts is not None:
            return [(part, lines) for part in parts]
    slabs = _slabs(frames)
    if slabs is not None:
        return [(slab, lines) for slab in slabs]
    kept = []
    for level in levels:
        for other in level[1:]:
            if not same_pixels(level[0], other):
                along = float(np.asarray(other.position_mm) @ _normal(other))
                raise ImageError(
                    f"{len(level)} different images at one position ({along:.2f} mm along the slice"
                    " normal), and no"
                    " echo, time or other element that tells them apart; separate or delete them"
                )
            lines.append("an exact copy of another image of the series")
        kept.append(level[0])
    return [(kept, lines)]


def _without_copies(
    frames: list[Frame], same_pixels: Callable[[Frame, Frame], bool]
) -> tuple[list[Frame], list[str]]:
    """Drop the second of two files that are one image: the same UID, place and pixels.

    Raises:
        ImageError: if one UID and place has two contents.
    """
    kept: dict[tuple, Frame] = {}
    lines = []
    for frame in frames:
        key = (frame.uid, frame.position_mm) if frame.uid else (id(frame),)
        if key not in kept:
            kept[key] = frame
        elif frame.soft == kept[key].soft:
            if not same_pixels(kept[key], frame):
                raise ImageError(
                    "two files are one image by their SOPInstanceUID and position, with different"
                    " pixels; keep the"
                    " right one"
                )
            lines.append("an exact copy of another image of the series")
        else:
            kept[(*key, id(frame))] = frame
    return list(kept.values()), lines


def _told_apart(frames: list[Frame], positions: int, most: int) -> list[list[Frame]] | None:
    """Return the volumes by the first element that has exactly one value a volume, None where there"
    " is none."""
    for attribute in frames[0].soft:
        groups = _by(frames, lambda frame, attribute=attribute: frame.soft.get(attribute))  # type: ignore[misc]
        if len(groups) == most and all(_complete(part, positions) for part in groups.values()):
            return [_in_order(part) for _, part in sorted(groups.items(), key=_first_key)]
    for attribute in ("acquisition time", "content time", "reference time", "trigger time"):
        times = [frame.soft.get(attribute) for frame in frames]
        if any(not time for time in times):
            continue
        ordered = sorted(frames, key=lambda frame: frame.soft[attribute])  # type: ignore[arg-type,return-value]
        parts = [ordered[i : i + positions] for i in range(0, len(ordered), positions)]
        edges = [(part[0].soft[attribute], part[-1].soft[attribute]) for part in parts]
        apart = all(one[1] < two[0] for one, two in pairwise(edges))  # type: ignore[operator]
        if apart and all(_complete(part, positions) for part in parts):
            return [_in_order(part) for part in parts]
    return None


def _slabs(frames: list[Frame]) -> list[list[Frame]] | None:
    """Return volumes that overlap in some positions only: two acquisitions, each even in itself."""
    groups = _by(frames, lambda frame: frame.soft.get("acquisition number"))
    if len(groups) < 2:
        return None
    slabs = []
    for _, part in sorted(groups.items(), key=_first_key):
        if len(part) < 3 or any(len(level) > 1 for level in _levels(part)):
            return None
        slab = _in_order(part)
        along = _positions(slab) @ _normal(slab[0])
        if np.ptp(np.diff(along)) > 2 * JITTER_MM:
            return None
        slabs.append(slab)
    return slabs


def _complete(part: list[Frame], positions: int) -> bool:
    levels = _levels(part)
    return len(part) == positions == len(levels)


def _in_order(part: list[Frame]) -> list[Frame]:
    return [level[0] for level in _levels(part)]


def _stack(frames: list[Frame], lines: list[str], uneven: bool) -> Stack:
    """Return the frames with their affine.

    Raises:
        ImageError: if a slice is missing or the slices are not even, naming the positions.
    """
    first = frames[0]
    normal = _normal(first)
    positions = _positions(frames)
    flags: list[str] = []
    gaps: tuple[float, ...] | None = None
    if len(frames) == 1:
        step = normal * _single_thickness(first)
        flags.append("single_slice")
    else:
        step = (positions[-1] - positions[0]) / (len(frames) - 1)
        even = positions[0] + np.arange(len(frames))[:, None] * step
        off = np.linalg.norm(positions - even, axis=1)
        along = (positions - positions[0]) @ normal
        if off.max() > max(JITTER_MM, JITTER_FRACTION * float(step @ normal)):
            straight = positions[0] + (along / along[-1])[:, None] * (positions[-1] - positions[0])
            beside = float(np.linalg.norm(positions - straight, axis=1).max())
            if beside > max(JITTER_MM, JITTER_FRACTION * float(step @ normal)):
                raise ImageError(
                    f"the slices do not lie on one line: one is {beside:.2f} mm beside it, with {len(frames)} slices"
                    f" {float(step @ normal):.2f} mm apart; export the series again"
                )
            if not uneven:
                raise ImageError(_uneven_message(along))
            gaps = tuple(float(value) for value in along)
    sideways = step - normal * (step @ normal)
    if float(np.linalg.norm(sideways)) > MAX_SLIDE * float(step @ normal):
        raise ImageError(
            f"the slices slide {np.linalg.norm(sideways):.2f} mm sideways at each {step @ normal:.2f} mm along their"
            " normal; no gantry tilts so far, export the series again"
        )
    sheared = len(frames) > 1 and float(np.linalg.norm(sideways)) * (len(frames) - 1) > TILT_MM
    rows_mm, columns_mm = first.spacing_mm  # type: ignore[misc]
    affine = np.eye(4)
    affine[:3, 0] = np.asarray(first.row_cosine) * columns_mm
    affine[:3, 1] = np.asarray(first.column_cosine) * rows_mm
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    affine[:2] *= -1  # LPS, as DICOM has it, to RAS
    return Stack(tuple(frames), affine, sheared, gaps, tuple(flags), tuple(lines))


def _single_thickness(frame: Frame) -> float:
    if frame.gap_mm is not None:
        return frame.gap_mm
    if frame.thickness_mm is not None:
        return frame.thickness_mm
    raise ImageError(
        "a single image with neither SpacingBetweenSlices nor SliceThickness: its extent across the"
        " slice is unknown;"
        " give the whole series"
    )


def _uneven_message(along: NDArray[np.float64]) -> str:
    steps = np.diff(along)
    usual = float(np.median(steps))
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
    what = f"{missing} slices are missing" if whole else "the slices are uneven"
    more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
    return (
        f"{what}: {len(along)} slices are usually {usual:.2f} mm apart, but {places}{more} (from the"
        " first slice);"
        " complete the series, or read it with uneven='resample'"
    )


def projection(frame: Frame) -> Stack:
    """Return the stack of one radiograph, which has a detector's spacing and no place in the patient.

    Raises:
        ImageError: if it has no spacing.
    """
    if frame.spacing_mm is None:
        raise ImageError(
            "a radiograph without PixelSpacing or ImagerPixelSpacing has no size in mm; export it again"
        )
    rows_mm, columns_mm = frame.spacing_mm
    flags = ("projection", "single_slice")
    return Stack((frame,), np.diag([-columns_mm, -rows_mm, 1.0, 1.0]), False, None, flags, ())


def is_projection(frame: Frame) -> bool:
    """Whether a frame is a radiograph without a place in the patient."""
    return frame.modality in PROJECTIONS and (frame.position_mm is None or frame.row_cosine is None)
