"""Splitting of one series into volumes: echoes, time points, weightings and reconstructions.

Nothing depends on instance numbers or the order of files: scanners, archives and anonymisers renumber them.
The header of each frame decides (`Frame.hard_key` always, `Frame.soft_attributes` if positions repeat), and
frames that the headers do not distinguish are refused, not chosen from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.dicom.frame import Frame
from medfed.errors import ImageError

# Two slices closer than this have the same position; scanners write positions to 0.001 or 0.01 mm.
SAME_POSITION_MM = 0.01
# How far a slice may be off the even grid: 0.01 mm for rounding of positions, and 1 % of the slice distance,
# which moves no voxel to a neighbour.
JITTER_MM, JITTER_FRACTION = 0.01, 0.01
# Attributes that differ between acquisitions or reconstructions, so that slices that differ in them belong to
# two volumes even if their positions interleave. Not the acquisition number, which also counts passes and
# slices of one volume.
SPLIT_ATTRIBUTES = (
    "image type",
    "inversion time",
    "flip angle",
    "kernel",
    "tube voltage",
    "contrast",
    "sequence name",
    "thickness",
    "frame type",
    "complex component",
)
TIMES = ("trigger time", "acquisition time", "reference time", "content time", "cardiac delay")
SamePixels = Callable[[Frame, Frame], bool]


def split_by_hard_key(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Return the frames of one series by frame of reference, echo, time point and stack.

    An element that differs in every slice of one volume (a writer that numbers time points continuously, or
    invents a frame of reference for each file) is ignored; so is a frame of reference that some frames lack.
    """
    if not frames:
        return []
    columns = [_fill_gaps([frame.hard_key[i] for frame in frames]) for i in range(len(frames[0].hard_key))]
    positions = [frame.position_mm for frame in frames]
    one_volume = None not in positions and len(set(positions)) == len(frames) >= 3
    distinctive = [
        column for column in columns if not (one_volume and len({repr(x) for x in column}) == len(frames))
    ]
    return _group_by(frames, [tuple(column[i] for column in distinctive) for i in range(len(frames))])


def _fill_gaps(column: list[object]) -> list[object]:
    """Return one element's values, with empty ones replaced if all others are the same text."""
    values = {value for value in column if value != b""}
    if len(values) == 1 and isinstance(next(iter(values)), bytes):
        return [next(iter(values))] * len(column)
    return column


def split_volumes(frames: list[Frame], same_pixels: SamePixels) -> list[tuple[list[Frame], list[str]]]:
    """Return parallel frames as volumes with each position once, and notes on the frames dropped.

    Raises:
        ImageError: if two images have one position and nothing in their headers distinguishes them.
    """
    frames, notes = _without_copies(frames, same_pixels)
    levels = group_by_position(frames)
    if max(len(level) for level in levels) == 1:
        parts = _interleaved(frames)
        return [(part, notes) for part in parts or [_in_order(frames)]]
    parts = _split_by_attributes(frames, len(levels)) or _slabs(frames)
    if parts:
        return [(part, notes) for part in parts]
    volume = []
    for level in levels:
        for other in level[1:]:
            distance_mm = float(np.linalg.norm(np.diff(positions_lps([level[0], other]), axis=0)))
            if distance_mm > 2 * SAME_POSITION_MM or not same_pixels(level[0], other):
                raise ImageError(_conflict(level, levels))
            notes.append("an exact copy of another image of the series")
        volume.append(level[0])
    return [(volume, notes)]


def _conflict(level: list[Frame], levels: list[list[Frame]]) -> str:
    """Return the message for images that share a position."""
    along = float(np.asarray(level[0].position_mm) @ slice_normal(level[0]))
    most = max(len(other) for other in levels)
    fewer = [other[0] for other in levels if len(other) < most]
    # If every or most positions occur several times, a volume has a gap; if most occur once, copies differ.
    several = min(len(other) for other in levels) > 1
    if fewer and (several or len(fewer) < len(levels) / 2):
        where = float(np.asarray(fewer[0].position_mm) @ slice_normal(fewer[0]))
        return (
            f"{most} images at each position, but fewer at {len(fewer)} of the {len(levels)}, the first"
            f" {where:.2f} mm along the slice normal: an echo or time point lacks slices; complete the"
            " series, or leave that volume out"
        )
    return (
        f"{len(level)} different images at one position ({along:.2f} mm along the slice normal), and no "
        "echo, time or other element that distinguishes them; separate or delete them"
    )


def _without_copies(frames: list[Frame], same_pixels: SamePixels) -> tuple[list[Frame], list[str]]:
    """Return the frames without second copies of an image: the same UID, position and pixels.

    Raises:
        ImageError: if one UID and position has different pixels.
    """
    unique: dict[tuple[object, ...], Frame] = {}
    notes = []
    for frame in frames:
        key = (frame.uid, frame.position_mm) if frame.uid else (id(frame),)
        if key not in unique:
            unique[key] = frame
        elif frame.soft_attributes == unique[key].soft_attributes:
            if not same_pixels(unique[key], frame):
                raise ImageError(
                    "two files have the same SOPInstanceUID and position, but different pixels; keep the"
                    " correct one"
                )
            notes.append("an exact copy of another image of the series")
        else:
            unique[(*key, id(frame))] = frame
    return list(unique.values()), notes


def _split_by_attributes(frames: list[Frame], positions: int) -> list[list[Frame]] | None:
    """Return volumes with every position, split by one attribute after another, or None."""
    most = len(frames) // positions
    if not _complete(frames, positions, most):
        return None
    if most == 1:
        return [_in_order(frames)]
    for attribute in frames[0].soft_attributes:
        groups = _group_by_attribute(frames, attribute)
        if len(groups) < 2 or not all(_complete(part, positions) for part in groups):
            continue
        parts = [_split_by_attributes(part, positions) for part in groups]
        if all(parts):
            return [volume for part in parts if part for volume in part]
    return _by_time(frames, positions)


def _by_time(frames: list[Frame], positions: int) -> list[list[Frame]] | None:
    """Return volumes split by times that differ from slice to slice, or None.

    Either one volume was acquired after the other, or, as in a cine, each position through all its phases:
    then the n-th times of all positions make the n-th volume.
    """
    for attribute in TIMES:
        by_time = partial(_time, attribute=attribute)
        if not all(map(by_time, frames)):
            continue
        ordered = sorted(frames, key=by_time)
        parts = [ordered[i : i + positions] for i in range(0, len(ordered), positions)]
        successive = all(by_time(one[-1]) < by_time(two[0]) for one, two in pairwise(parts))
        if successive and all(_complete(part, positions, 1) for part in parts):
            return [_in_order(part) for part in parts]
        levels = [sorted(level, key=by_time) for level in group_by_position(frames)]
        if all(len({by_time(frame) for frame in level}) == len(level) for level in levels):
            return [list(volume) for volume in zip(*levels, strict=True)]
    return None


def _time(frame: Frame, attribute: str) -> tuple[float, ...]:
    """Return a comparable time from a number, a text, or texts of date and time; empty if unknown."""
    value = frame.soft_attributes.get(attribute)
    parts = value if isinstance(value, tuple) else (value,)
    numbers = []
    for part in parts:
        if isinstance(part, int | float):
            numbers.append(float(part))
        elif isinstance(part, bytes) and part:
            try:
                numbers.append(float(part))
            except ValueError:
                return ()
    return tuple(numbers)


def _slabs(frames: list[Frame]) -> list[list[Frame]] | None:
    """Return even volumes that share some positions only: overlapping slabs, or reconstructions."""
    divisions = (_even_parts(frames, attribute) for attribute in ("acquisition number", *SPLIT_ATTRIBUTES))
    return next(filter(None, divisions), None)


def _interleaved(frames: list[Frame]) -> list[list[Frame]] | None:
    """Return the volumes of acquisitions with interleaved slices, or None if there is only one."""
    if len(frames) < 6:
        return None
    even = _even(frames)
    for attribute in SPLIT_ATTRIBUTES if even else ("acquisition number", *SPLIT_ATTRIBUTES):
        parts = _even_parts(frames, attribute)
        if parts is None:
            continue
        spans = sorted((ends[0], ends[-1]) for ends in (_along(part) for part in parts))
        if not all(two[0] < one[1] for one, two in pairwise(spans)):
            continue
        # Slices missing from one volume also leave even groups, but on the grid of all slices.
        if even or not _on_one_grid(frames):
            return parts
    return None


def _even_parts(frames: list[Frame], attribute: str) -> list[list[Frame]] | None:
    parts = [_in_order(part) for part in _group_by_attribute(frames, attribute)]
    if len(parts) < 2 or sum(map(len, parts)) < len(frames):
        return None
    return parts if all(len(part) >= 3 and _even(part) for part in parts) else None


def _along(frames: Sequence[Frame]) -> NDArray[np.float64]:
    return np.sort(positions_lps(frames) @ slice_normal(frames[0]))


def _even(frames: Sequence[Frame]) -> bool:
    along = _along(frames)
    return bool(np.ptp(np.diff(along)) <= 2 * JITTER_MM)


def _on_one_grid(frames: Sequence[Frame]) -> bool:
    """Whether all slices lie at multiples of the smallest distance between two."""
    steps = np.diff(_along(frames))
    ratios = steps / steps.min()
    return bool(np.abs(ratios - np.rint(ratios)).max() < 0.02)


def _complete(part: list[Frame], positions: int, each: int | None = None) -> bool:
    """Whether a part has every position equally often (`each` times, if given)."""
    levels = group_by_position(part)
    sizes = {len(level) for level in levels}
    return len(levels) == positions and len(sizes) == 1 and (each is None or sizes == {each})


def _in_order(part: list[Frame]) -> list[Frame]:
    return [level[0] for level in group_by_position(part)]


# ---------------------------------------------------------------------------------------------- geometry


def slice_normal(frame: Frame) -> NDArray[np.float64]:
    """Return the unit normal of a frame's plane, LPS."""
    normal = np.cross(*np.array(frame.axes))
    return np.asarray(normal / np.linalg.norm(normal))


def positions_lps(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Return the positions, (frames, 3), LPS mm."""
    return np.array([frame.position_mm for frame in frames], np.float64)


def group_by_position(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Return the frames grouped by position along the normal, in that order."""
    along = positions_lps(frames) @ slice_normal(frames[0])
    levels: list[list[Frame]] = []
    last = -np.inf
    for i in np.argsort(along, kind="stable"):
        if along[i] - last > SAME_POSITION_MM:
            levels.append([])
            last = along[i]
        levels[-1].append(frames[i])
    return levels


# ---------------------------------------------------------------------------------------------- grouping


def _group_by_attribute(frames: Sequence[Frame], attribute: str) -> list[list[Frame]]:
    return _group_by(frames, [frame.soft_attributes.get(attribute) for frame in frames])


def _group_by(frames: Sequence[Frame], keys: Sequence[object]) -> list[list[Frame]]:
    """Return the frames grouped by their keys, in the order of these."""
    groups: dict[object, list[Frame]] = defaultdict(list)
    for frame, key in zip(frames, keys, strict=True):
        groups[key].append(frame)
    return [groups[key] for key in sorted(groups, key=_rank)]


def _rank(value: object) -> tuple[Any, ...]:
    """Return a sort key: numbers, and texts that are numbers, by value, and anything else after them."""
    if isinstance(value, tuple):
        return (2, 0.0, "", tuple(_rank(part) for part in value))
    if isinstance(value, int | float):
        return (0, float(value), "", ())
    if isinstance(value, bytes):
        with suppress(ValueError):
            return (0, float(value), "", ())
    return (1, 0.0, repr(value), ())
