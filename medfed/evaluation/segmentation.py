"""Segmentation metrics of one case: overlap, surface distances in mm, volume, and lesion detection.

This module defines once how an absent structure is scored; the note of every row states it, and the report
counts such cases:

    reference  prediction   Dice, surface Dice   distances   note
    present    present      measured             measured
    present    absent       0                    none        missed
    absent     present      0                    none        false positive
    absent     absent       none                 none        absent in both

No value silently becomes NaN or 1, and none is dropped. This is of one case; a group's mean overlap is over
the patients whose reference contains the structure, and the others are its specificity (`patients`). (In
MONAI 1.6 the mean HD95 over a missed, a perfect and a false-positive structure is 0.0 mm because NaNs are
ignored, and its Dice ignores false positives on an empty reference.)

**Distances.** In the `voxel` form, the default, a surface consists of the mask's voxels that have a face
neighbour outside the mask; the image border counts as outside. Distances are measured between voxel centres,
and each surface voxel counts once. MONAI and SimpleITK define surfaces in the same way. In the `surfel` form,
a surface consists of marching-cubes elements weighted by their area in mm², as in DeepMind's surface-distance
(Nikolov et al. 2021, arXiv:1809.04430). Because the two forms give different values, the name of a surface
Dice includes its form and tolerance: `nsd_voxel_2mm`. HD95 is the larger of the two directed 95th
percentiles; pooling both directions first, as medpy does, gives a smaller number.

**Lesions** are 26-connected components. A reference lesion is detected if at least one of its voxels is
predicted; a predicted lesion that contains no reference voxel is a false positive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from medfed.errors import LabelError

MISSED = "missed"
FALSE_POSITIVE = "false positive"
ABSENT = "absent in both"

# Above this cosine two axes of an affine are not perpendicular, and spacing alone does not give distances.
MAX_COSINE = 1e-3

# Size of the neighbourhood that is searched voxel by voxel for the other surface, and voxels per search step.
NEIGHBOURHOOD_VOXELS = 250
OFFSETS_PER_STEP = 16

# The tolerance of the surface Dice where a study states none.
TOLERANCE_MM = 2.0

Form = Literal["voxel", "surfel"]
Unit = Literal["mm", "px"]
UNITS: tuple[Unit, ...] = ("mm", "px")


class Surfaces(NamedTuple):
    """Distances in mm from each element of one surface to the other surface, and the elements' weights."""

    to_reference_mm: NDArray[np.float64]
    to_prediction_mm: NDArray[np.float64]
    prediction_weights: NDArray[np.float64]
    reference_weights: NDArray[np.float64]


@dataclass(frozen=True)
class StructureMasks:
    """One structure's predicted and reference masks in one case, cropped to their bounding box.

    `unit` is that of spacing and tolerance: "px" for pictures without a size in mm, whose spacing is 1 pixel.
    """

    prediction: NDArray[np.bool_]
    reference: NDArray[np.bool_]
    spacing_mm: NDArray[np.float64]
    tolerance_mm: float
    form: Form
    unit: Unit = "mm"

    @cached_property
    def voxels(self) -> tuple[int, int]:
        """Number of voxels in the prediction and in the reference."""
        return int(np.count_nonzero(self.prediction)), int(np.count_nonzero(self.reference))

    @property
    def absence(self) -> str | None:
        """MISSED, FALSE_POSITIVE or ABSENT, or None if both masks contain the structure."""
        predicted, true = self.voxels
        if predicted and true:
            return None
        return ABSENT if predicted == true else MISSED if true else FALSE_POSITIVE

    @cached_property
    def surfaces(self) -> Surfaces:
        """Distances between the two surfaces; requires that `absence` is None."""
        return surface_distances(self.prediction, self.reference, self.spacing_mm, self.form)


def surface_dice_name(form: Form, tolerance: float, unit: Unit) -> str:
    """Return the name of the surface Dice at a tolerance.

    >>> surface_dice_name("voxel", 2.0, "mm")
    'nsd_voxel_2mm'
    """
    return f"nsd_{form}_{tolerance:g}{unit}"


def spacing_of(affine: ArrayLike) -> tuple[float, ...]:
    """Return the voxel spacing in mm along each axis of a 4x4 affine in mm.

    Raises:
        LabelError: a spacing is not positive, or two axes are not perpendicular.
    """
    columns = np.asarray(affine, dtype=np.float64)[:3, :3]
    spacing_mm = np.linalg.norm(columns, axis=0)
    if not (np.isfinite(spacing_mm) & (spacing_mm > 0)).all():
        raise LabelError(f"affine: spacings {tuple(spacing_mm.tolist())} mm; all three must be positive")
    cosines = (columns / spacing_mm).T @ (columns / spacing_mm)
    worst = float(np.abs(cosines - np.eye(3)).max())
    if not worst <= MAX_COSINE:
        raise LabelError(
            f"affine: two axes have a cosine of {worst:.3g}, at most {MAX_COSINE:g} is allowed; "
            "resample the case to a grid with perpendicular axes before evaluating it"
        )
    return tuple(float(value) for value in spacing_mm)


def split_structures(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Sequence[float],
    structures: Mapping[int, str],
    tolerance_mm: float = 2.0,
    form: Form = "voxel",
    unit: Unit = "mm",
) -> Iterator[tuple[str, StructureMasks]]:
    """Yield the name and masks of each structure of one case.

    Args:
        prediction: label values, (X, Y, Z) or (X, Y).
        reference: label values on the same grid.
        spacing_mm: distance between voxel centres along each axis; `spacing_of` computes it from an affine.
        structures: label value -> name; 0 is background.
        tolerance_mm: tolerance of the surface Dice.
        form: how surfaces are defined, see the module docstring.
        unit: that of spacing and tolerance, for the names of the metrics.

    Raises:
        LabelError: the shapes differ, a label value is unknown, or the spacing or tolerance is invalid.
    """
    predicted = _labels(prediction, "prediction", structures)
    true = _labels(reference, "reference", structures)
    if predicted.shape != true.shape:
        raise LabelError(
            f"prediction has shape {predicted.shape}, the reference {true.shape}; "
            "resample the prediction to the reference's grid before evaluating it"
        )
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (true.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise LabelError(f"spacing_mm: found {tuple(spacing_mm)}, expected {true.ndim} positive numbers")
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise LabelError(f"tolerance_mm: found {tolerance_mm:g}, expected a distance in mm of at least 0")
    for value, name in structures.items():
        inside, expected = predicted == value, true == value
        box = bounding_box(inside, expected)
        yield name, StructureMasks(inside[box], expected[box], spacing, tolerance_mm, form, unit)


def _labels(mask: ArrayLike, what: str, structures: Mapping[int, str]) -> NDArray[np.generic]:
    array = np.asarray(mask)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    # bincount is several times faster than unique, and most label maps are uint8.
    if array.dtype == np.uint8:
        present = np.flatnonzero(np.bincount(array.ravel(), minlength=1))
    else:
        present = np.unique(array)
    unknown = [float(value) for value in present if value != 0 and value not in structures]
    if unknown:
        raise LabelError(
            f"{what}: contains the label value {unknown[0]:g}, known values are "
            f"{', '.join(f'{value} ({name})' for value, name in structures.items())} and 0 for background"
        )
    return array


def dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float | None:
    """Return the Dice overlap of two masks, or None if both are empty; every nonzero voxel is foreground.

    Raises:
        LabelError: the masks have different shapes.
    """
    prediction, reference = np.asarray(prediction) != 0, np.asarray(reference) != 0
    if prediction.shape != reference.shape:
        raise LabelError(
            f"prediction has shape {prediction.shape}, the reference {reference.shape}; "
            "both must be on the same grid"
        )
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return float(2.0 * np.count_nonzero(prediction & reference) / total) if total else None


def bounding_box(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the smallest box that contains both masks."""
    box: list[slice] = []
    for axis in range(reference.ndim):
        # Search only within the slices found for the earlier axes.
        remaining = (*box, *[slice(None)] * (reference.ndim - axis))
        others = tuple(other for other in range(reference.ndim) if other != axis)
        filled = np.flatnonzero(
            prediction[remaining].any(axis=others) | reference[remaining].any(axis=others)
        )
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, 0))
    return tuple(box)


def count_lesions(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Return the numbers of reference lesions, detected lesions, and false-positive predicted lesions."""
    neighbours = np.ones((3,) * reference.ndim, dtype=bool)
    true, lesions = ndimage.label(reference, structure=neighbours)
    predicted, components = ndimage.label(prediction, structure=neighbours)
    detected = np.count_nonzero(np.bincount(true[prediction], minlength=lesions + 1)[1:])
    touching = np.count_nonzero(np.bincount(predicted[reference], minlength=components + 1)[1:])
    return int(lesions), int(detected), int(components - touching)


def surface_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: ArrayLike, form: Form = "voxel"
) -> Surfaces:
    """Return the distances between the surfaces of two non-empty masks.

    Raises:
        LabelError: a mask is empty.
    """
    if not (prediction.any() and reference.any()):
        raise LabelError("distances need a prediction and a reference that both contain the structure")
    box = bounding_box(prediction, reference)
    prediction, reference = prediction[box], reference[box]
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if form == "voxel":
        edges = _edge(prediction), _edge(reference)
        weights = [np.ones(int(np.count_nonzero(mark))) for mark in edges]
    else:
        edges, weights = _surfels(prediction, reference, spacing)
    offsets, near_mm = _ball_offsets(spacing)
    reach = np.abs(offsets).max(axis=0)
    first, second = (np.pad(mark, [(int(size), int(size)) for size in reach]) for mark in edges)
    to_reference = _nearest(first, second, offsets, near_mm, spacing)
    to_prediction = _nearest(second, first, offsets, near_mm, spacing)
    return Surfaces(to_reference, to_prediction, *weights)


def _ball_offsets(spacing_mm: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the offsets (N, axes) in a ball of about NEIGHBOURHOOD_VOXELS voxels, and their lengths in mm.

    The nearest offsets come first.
    """
    radius_mm = 0.6 * (NEIGHBOURHOOD_VOXELS * spacing_mm.prod()) ** (1 / len(spacing_mm))
    ranges = [np.arange(-int(half), int(half) + 1) for half in np.floor(radius_mm / spacing_mm)]
    steps = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(spacing_mm))
    lengths_mm = np.sqrt(((steps * spacing_mm) ** 2).sum(axis=1))
    order = np.argsort(lengths_mm, kind="stable")
    order = order[lengths_mm[order] <= radius_mm]
    return steps[order], lengths_mm[order]


def _nearest(
    mark: NDArray[np.bool_],
    other: NDArray[np.bool_],
    offsets: NDArray[np.intp],
    near_mm: NDArray[np.float64],
    spacing_mm: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the distance in mm from each element of a surface to the nearest element of the other.

    Both masks are padded by the reach of the offsets. In a usable prediction the other surface is within a
    few voxels of most elements. These are searched voxel by voxel, nearest first, which is several times
    faster than a k-d tree; the tree handles the remaining elements.
    """
    strides = np.array([int(np.prod(mark.shape[axis + 1 :])) for axis in range(mark.ndim)])
    steps = offsets @ strides
    positions, other_flat = np.flatnonzero(mark), other.ravel()
    distances = np.zeros(len(positions))
    pending = np.arange(len(positions))
    for start in range(0, len(steps), OFFSETS_PER_STEP):
        hits = other_flat[steps[start : start + OFFSETS_PER_STEP, None] + positions[pending]]
        reached = hits.any(axis=0)
        distances[pending[reached]] = near_mm[start + hits[:, reached].argmax(axis=0)]
        pending = pending[~reached]
        if not len(pending):
            return distances
    # Surface points are distinct, so an unbalanced tree takes half the time to build and no longer to search.
    tree = cKDTree(np.argwhere(other) * spacing_mm, leafsize=32, balanced_tree=False, compact_nodes=False)
    points = np.stack(np.unravel_index(positions[pending], mark.shape), axis=1) * spacing_mm
    distances[pending] = tree.query(points)[0]
    return distances


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the voxels of a mask that have a face neighbour outside it; the border counts as outside."""
    padded, inside = np.pad(mask, 1), mask.copy()
    for axis, size in enumerate(mask.shape):
        for start in (0, 2):
            neighbours = [slice(1, -1)] * mask.ndim
            neighbours[axis] = slice(start, start + size)
            inside &= padded[tuple(neighbours)]
    return mask & ~inside


def _surfels(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
) -> tuple[tuple[NDArray[np.bool_], NDArray[np.bool_]], list[NDArray[np.float64]]]:
    # MONAI's table of surface areas of the 256 neighbourhoods (from DeepMind's, Apache-2.0) requires torch.
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area

    if reference.ndim != 3:
        raise LabelError(f"the surfel form requires three axes, found {reference.ndim}; use the voxel form")
    spacing = tuple(float(value) for value in spacing_mm)
    table, kernel = create_table_neighbour_code_to_surface_area(spacing)  # type: ignore[no-untyped-call]  # MONAI
    areas, code = table.numpy().astype(np.float64), kernel.numpy().reshape(2, 2, 2)
    edges, weights = [], []
    for mask in (prediction, reference):
        padded = np.pad(mask, 1).astype(np.int16)
        codes = np.zeros(tuple(size + 1 for size in mask.shape), dtype=np.int16)
        for corner in np.ndindex(2, 2, 2):
            view = tuple(slice(start, start + size) for start, size in zip(corner, codes.shape, strict=True))
            codes += int(code[corner]) * padded[view]
        mark = (codes != 0) & (codes != 255)
        edges.append(mark)
        weights.append(areas[codes[mark]])
    return (edges[0], edges[1]), weights


def surface_dice_of(surfaces: Surfaces, tolerance_mm: float) -> float:
    """Return the fraction of the two surfaces that lies within the tolerance of the other surface."""
    near = surfaces.prediction_weights[surfaces.to_reference_mm <= tolerance_mm].sum()
    near += surfaces.reference_weights[surfaces.to_prediction_mm <= tolerance_mm].sum()
    return float(near / (surfaces.prediction_weights.sum() + surfaces.reference_weights.sum()))


def mean_distance_of(surfaces: Surfaces) -> float:
    """Return the mean distance over the elements of both surfaces; surfels are weighted by area."""
    total = surfaces.to_reference_mm @ surfaces.prediction_weights
    total += surfaces.to_prediction_mm @ surfaces.reference_weights
    return float(total / (surfaces.prediction_weights.sum() + surfaces.reference_weights.sum()))


def hausdorff_of(surfaces: Surfaces, quantile: float, form: Form = "voxel") -> float:
    """Return the larger directed quantile: interpolated in voxel form, weighted by area in surfel form."""
    first = surfaces.to_reference_mm, surfaces.prediction_weights
    second = surfaces.to_prediction_mm, surfaces.reference_weights
    if form == "voxel":
        return max(float(np.quantile(distances, quantile)) for distances, _ in (first, second))
    return max(_area_quantile(*first, quantile), _area_quantile(*second, quantile))


def _area_quantile(distances: NDArray[np.float64], areas: NDArray[np.float64], quantile: float) -> float:
    order = np.argsort(distances, kind="stable")
    share = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(int(np.searchsorted(share, quantile)), len(order) - 1)])
