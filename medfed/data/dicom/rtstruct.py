"""DICOM structure sets on a volume's grid: a voxel belongs to a structure if its centre
is inside the contour.

Nested contours alternate between structure and hole, as treatment planning systems draw them, and so do
contours that reach their hole through a channel without width (keyholes). Centres on a left or upper edge are
inside, on a right or lower edge outside, so that neighbours share no voxel and an area keeps its size.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from medfed.data.dicom import tags
from medfed.data.dicom.elements import Elements
from medfed.data.dicom.file import DicomFile
from medfed.data.dicom.structures import structures_of
from medfed.data.identity_digest import identity_digests
from medfed.data.label_regions import check_classes, check_same_patient, paint_regions
from medfed.data.read_options import LabelOptions
from medfed.data.volume import Volume
from medfed.errors import LabelError

# A contour must lie in the plane of a slice, within this fraction of the slice distance.
PLANE_TOLERANCE = 0.1
MIN_AREA_POINTS = 3
# Points within this distance of a voxel's centre line (in voxels) are on it: contours are written to about
# 0.001 mm.
SNAP_VOXELS = 1e-4


def read_structure_set(file: DicomFile, like: Volume, options: LabelOptions) -> Volume:
    """Return the closed planar contours of a structure set as class numbers on the grid of `like`.

    Raises:
        LabelError: if a contour is damaged, lies between or outside the slices, or has no class of the task.
    """
    header = file.elements
    flags = check_same_patient(like, _identities(header))
    classes = options.classes_of(structures_of(file))
    skipped: list[str] = []
    regions: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
    omitted = False
    for item in header.items(tags.ROI_CONTOURS):
        number = item.count(tags.REFERENCED_ROI)
        if number is None or number not in classes:
            raise LabelError(
                "contours belong to a structure that the file does not describe; the file is damaged"
            )
        value = classes[number]
        if value is None:
            omitted = True
            skipped.append(f"structure {number}, which the given names omit")
            continue
        contours = [contour for contour in item.items(tags.CONTOURS) if _is_area(contour, number, skipped)]
        if value == 0:
            omitted = True
        elif not contours:
            skipped.append(f"structure {number}, which has no closed contour")
        else:
            check_classes([value], options.classes)
            region, gaps = _region(contours, like)
            regions[value] += region
            if gaps:
                slices = "1 slice" if gaps == 1 else f"{gaps} slices"
                skipped.append(
                    f"{slices} without a contour between those of structure {number}: nothing is interpolated"
                )
    if not regions and not omitted:
        raise LabelError("the structure set holds no closed contour of three points or more; export it again")
    return paint_regions(regions, like, options.overlap, skipped, flags)


def _identities(header: Elements) -> tuple[str, ...]:
    frames, series = [], []
    for frame in header.items(tags.RT_FRAMES):
        frames.append(frame.text(tags.FRAME_UID))
        for study in frame.items(tags.RT_STUDIES):
            series += [item.text(tags.SERIES_UID) for item in study.items(tags.RT_SERIES)]
    return identity_digests(header.text(tags.PATIENT_ID), frames, series)


def _is_area(contour: Elements, number: int, skipped: list[str]) -> bool:
    kind = contour.text(tags.GEOMETRY)
    if kind in (b"CLOSED_PLANAR", b"CLOSEDPLANAR_XOR"):
        # A stray click, which systems keep among the contours: it encloses nothing, whatever its place.
        points = len(_points(contour))
        if points < MIN_AREA_POINTS:
            skipped.append(f"a closed contour of {points} points of structure {number}: it encloses nothing")
        return points >= MIN_AREA_POINTS
    if kind in (b"POINT", b"OPEN_PLANAR", b"OPEN_NONPLANAR"):
        skipped.append(f"a point or open line of structure {number}")
        return False
    raise LabelError("a contour of unknown geometric type; the file is damaged")


def _region(contours: list[Elements], like: Volume) -> tuple[list[NDArray[np.int64]], int]:
    """Return the flat indices of a structure's voxels, per slice, and the number of slices without any."""
    slices: dict[tuple[int, int], list[NDArray[np.float64]]] = defaultdict(list)
    exclusive = all(contour.text(tags.GEOMETRY) == b"CLOSEDPLANAR_XOR" for contour in contours)
    for contour in contours:
        axis, plane, polygon = _polygon(contour, like)
        slices[axis, plane].append(polygon)
    region = []
    for (axis, plane), polygons in sorted(slices.items(), key=lambda entry: entry[0]):
        rows, columns = np.delete(like.shape, axis)
        mask = _even_odd(polygons, (int(rows), int(columns)), exclusive)
        within = np.nonzero(mask)
        voxels = [*within[:axis], np.full(len(within[0]), plane), *within[axis:]]
        region.append(np.asarray(np.ravel_multi_index(tuple(voxels), like.shape)))
    gaps = 0
    for axis in {axis for axis, _ in slices}:
        planes = [plane for other, plane in slices if other == axis]
        gaps += max(planes) - min(planes) + 1 - len(planes)
    return region, gaps


def _polygon(contour: Elements, like: Volume) -> tuple[int, int, NDArray[np.float64]]:
    """Return a contour's axis, slice index, and points (N, 2) in voxels within that slice.

    Raises:
        LabelError: if the contour lies between or outside the slices, or beside the image.
    """
    inverse = np.linalg.inv(like.affine_ras)
    points = _points(contour) * (-1, -1, 1)  # LPS to RAS
    voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
    axis, plane = _slice(voxels, like)
    within = np.delete(voxels, axis, axis=1)
    size = np.delete(like.shape, axis)
    beside = np.maximum(-0.5 - within.max(axis=0), within.min(axis=0) - size + 0.5)
    if beside.max() > 0:
        beside_mm = float((beside * np.delete(like.spacing_mm, axis)).max())
        raise LabelError(
            f"a contour lies {beside_mm:.1f} mm beside the image; take the structures of this image"
        )
    return axis, plane, within


def _points(contour: Elements) -> NDArray[np.float64]:
    try:
        values = np.array(contour.text(tags.CONTOUR_DATA).split(b"\\"), dtype=np.float64)
    except ValueError:
        values = np.array([np.nan])
    announced = contour.count(tags.POINTS)
    if len(values) % 3 or not np.isfinite(values).all() or announced not in (None, len(values) // 3):
        raise LabelError(
            "a contour's points are damaged, or not as many as announced; export the structures again"
        )
    return values.reshape(-1, 3)


def _slice(voxels: NDArray[np.float64], like: Volume) -> tuple[int, int]:
    """Return the axis perpendicular to a contour's plane, and the index of its slice.

    Raises:
        LabelError: if it does not lie in a slice.
    """
    spread = np.ptp(voxels, axis=0)
    axis = 2 if spread[2] <= PLANE_TOLERANCE else int(spread.argmin())
    if spread[axis] > PLANE_TOLERANCE:
        across_mm = float(spread[axis] * like.spacing_mm[axis])
        raise LabelError(
            f"a contour is oblique to the image's slices: it spans {across_mm:.2f} mm across them; draw or"
            " resample the structures on this image"
        )
    position = float(voxels[:, axis].mean())
    plane = round(position)
    distance_mm = like.spacing_mm[axis]
    if not 0 <= plane < like.shape[axis]:
        beyond = max(-position, position - like.shape[axis] + 1) * distance_mm
        raise LabelError(
            f"a contour lies {beyond:.1f} mm beyond the image; take the structures of this image"
        )
    if abs(position - plane) > PLANE_TOLERANCE:
        raise LabelError(
            f"a contour lies between two slices, {abs(position - plane) * distance_mm:.2f} mm from the"
            " nearer; take the structures of this image, or interpolate them onto its slices; of several"
            " channels, the first in data.channels is the image on which structures are placed"
        )
    return axis, plane


def _even_odd(
    polygons: list[NDArray[np.float64]], size: tuple[int, int], exclusive: bool
) -> NDArray[np.bool_]:
    """Return the voxels inside an odd number of nested contours; `exclusive` ones may also cross.

    Raises:
        LabelError: if two contours cross and are not exclusive, which leaves their common part undefined.
    """
    masks = [voxels_inside(polygon, size) for polygon in polygons]
    if not exclusive:
        # A contour that is drawn twice is one.
        masks = list({mask.tobytes(): mask for mask in masks}.values())
        for one, other in combinations(masks, 2):
            common = one & other
            if common.any() and not (np.array_equal(common, one) or np.array_equal(common, other)):
                raise LabelError(
                    f"two contours of one structure cross in a slice and share {int(common.sum())} voxels,"
                    " which may be structure or hole; correct the structure"
                )
    return np.asarray(np.logical_xor.reduce(masks))


def voxels_inside(polygon: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which voxel centres, integers (a, b), lie inside a closed polygon of points (a, b)."""
    near = np.rint(polygon)
    points = np.where(np.abs(polygon - near) < SNAP_VOXELS, near, polygon)
    toggles = np.zeros((size[0] + 1, size[1]), np.int32)
    for (a0, b0), (a1, b1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if b0 == b1:
            continue
        low, high = min(b0, b1), max(b0, b1)
        lines = np.arange(max(0, int(np.ceil(low))), min(size[1], int(np.ceil(high))))
        # Computed from the lower end in either direction, so that the two sides of a keyhole cancel.
        start, end = (a0, a1) if b0 < b1 else (a1, a0)
        crossing = start + (lines - low) * ((end - start) / (high - low))
        whole = np.rint(crossing)
        crossing = np.where(np.abs(crossing - whole) < SNAP_VOXELS, whole, crossing)
        np.add.at(toggles, (np.clip(np.ceil(crossing), 0, size[0]).astype(int), lines), 1)
    return np.asarray(np.cumsum(toggles, axis=0)[: size[0]] % 2 == 1)
