"""One case's masks become numbers: overlap, distances in mm, volume, lesions found and invented.

What happens when a structure is absent is defined here once, stated in every row's note, and counted in the
report:

    reference  prediction   Dice, surface Dice   distances   note
    present    present      measured             measured
    present    absent       0                    none        missed
    absent     present      0                    none        false positive
    absent     absent       none                 none        absent in both

Nothing is silently NaN, 1 or dropped. (MONAI 1.6: the mean HD95 over a missed, a perfect and an invented
structure is 0.0 mm, since the NaNs are left out, and its Dice leaves out what is invented on an empty
reference.)

**Distances.** The surface in `voxel` form is the set of a mask's voxels that have a face neighbour outside
it, the image border being outside; a distance runs between voxel centres, and each surface voxel counts
once. This is what MONAI and SimpleITK call surface, and the default here. In `surfel` form the surface is
made of marching-cubes elements that are weighted by their area in mm², as in DeepMind's surface-distance
(Nikolov et al. 2021, arXiv:1809.04430). The two differ, so a surface Dice names its form and its tolerance:
`nsd_voxel_2mm`. HD95 is the larger of the two directed 95th percentiles; pooling both directions first, as
medpy does, gives a smaller number.

**Lesions** are 26-connected components. A lesion of the reference is found when any of its voxels is
predicted; a predicted lesion that holds no voxel of the reference is a false positive.
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

# Two axes of an affine whose cosine is above this are not at a right angle, and spacing alone gives no
# distance.
MAX_COSINE = 1e-3

# Voxels around an element of a surface in which the other surface is looked for one by one, and how many
# at a time.
NEIGHBOURHOOD_VOXELS = 250
OFFSETS_PER_STEP = 16

Form = Literal["voxel", "surfel"]


class Surfaces(NamedTuple):
    """Distances in mm from every element of either surface to the other one, and the elements' weights."""

    to_reference_mm: NDArray[np.float64]
    to_prediction_mm: NDArray[np.float64]
    prediction_weights: NDArray[np.float64]
    reference_weights: NDArray[np.float64]


@dataclass(frozen=True)
class StructureMasks:
    """One structure's predicted and reference masks in one case, cut to the box that holds both."""

    prediction: NDArray[np.bool_]
    reference: NDArray[np.bool_]
    spacing_mm: NDArray[np.float64]
    tolerance_mm: float
    form: Form

    @cached_property
    def voxels(self) -> tuple[int, int]:
        """How many voxels the prediction and the reference have."""
        return int(np.count_nonzero(self.prediction)), int(np.count_nonzero(self.reference))

    @property
    def absence(self) -> str | None:
        """Whether the structure is missed, a false positive or absent in both; None if both masks have it."""
        predicted, true = self.voxels
        if predicted and true:
            return None
        return ABSENT if predicted == true else MISSED if true else FALSE_POSITIVE

    @cached_property
    def surfaces(self) -> Surfaces:
        """The distances between both surfaces, which exist where `absence` is None."""
        return surface_distances(self.prediction, self.reference, self.spacing_mm, self.form)


def spacing_of(affine: ArrayLike) -> tuple[float, ...]:
    """Return the distance in mm between neighbouring voxels along each axis of a 4x4 affine in mm.

    Raises:
        LabelError: the axes are not at right angles, so that no spacing describes the grid.
    """
    columns = np.asarray(affine, dtype=np.float64)[:3, :3]
    spacing_mm = np.linalg.norm(columns, axis=0)
    if not (np.isfinite(spacing_mm) & (spacing_mm > 0)).all():
        raise LabelError(f"affine: spacings {tuple(spacing_mm.tolist())} mm; all three must be above zero")
    cosines = (columns / spacing_mm).T @ (columns / spacing_mm)
    worst = float(np.abs(cosines - np.eye(3)).max())
    if not worst <= MAX_COSINE:
        raise LabelError(
            f"affine: two axes have a cosine of {worst:.3g}, at most {MAX_COSINE:g} is allowed; "
            "resample the case to a grid with right angles before it is measured"
        )
    return tuple(float(value) for value in spacing_mm)


def split_structures(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Sequence[float],
    structures: Mapping[int, str],
    tolerance_mm: float = 2.0,
    form: Form = "voxel",
) -> Iterator[tuple[str, StructureMasks]]:
    """Yield the name and masks of each structure of one case.

    Args:
        prediction: label values, (X, Y, Z) or (X, Y).
        reference: label values on the same grid.
        spacing_mm: distance between voxel centres along each axis; `spacing_of` reads it from an affine.
        structures: label value -> name; 0 is background.
        tolerance_mm: tolerance of the surface Dice.
        form: form of the surfaces, see the module.

    Raises:
        LabelError: if shapes differ, a label value is unknown, or spacing or tolerance are invalid.
    """
    predicted = _labels(prediction, "prediction", structures)
    true = _labels(reference, "reference", structures)
    if predicted.shape != true.shape:
        raise LabelError(
            f"prediction has shape {predicted.shape}, the reference {true.shape}; "
            "bring the prediction back to the reference's grid before it is measured"
        )
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (true.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise LabelError(f"spacing_mm: found {tuple(spacing_mm)}, expected {true.ndim} numbers above zero")
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise LabelError(f"tolerance_mm: found {tolerance_mm:g}, expected a number of mm from 0 on")
    for value, name in structures.items():
        inside, expected = predicted == value, true == value
        box = bounding_box(inside, expected)
        yield name, StructureMasks(inside[box], expected[box], spacing, tolerance_mm, form)


def _labels(mask: ArrayLike, what: str, structures: Mapping[int, str]) -> NDArray[np.generic]:
    array = np.asarray(mask)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    # bincount is several times faster than unique, and small unsigned labels are the rule.
    if array.dtype == np.uint8:
        present = np.flatnonzero(np.bincount(array.ravel(), minlength=1))
    else:
        present = np.unique(array)
    unknown = [float(value) for value in present if value != 0 and value not in structures]
    if unknown:
        raise LabelError(
            f"{what}: holds the label value {unknown[0]:g}, known are "
            f"{', '.join(f'{value} ({name})' for value, name in structures.items())} and 0 for background"
        )
    return array


def dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float | None:
    """Return the Dice overlap of two masks, or None where both are empty; whatever is not 0 is inside.

    Raises:
        LabelError: the masks differ in shape.
    """
    prediction, reference = np.asarray(prediction) != 0, np.asarray(reference) != 0
    if prediction.shape != reference.shape:
        raise LabelError(
            f"prediction has shape {prediction.shape}, the reference {reference.shape}; "
            "both must be on one grid"
        )
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2.0 * int(np.count_nonzero(prediction & reference)) / total if total else None


def bounding_box(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the smallest box that holds both masks."""
    box: list[slice] = []
    for axis in range(reference.ndim):
        # What earlier axes have cut off needs no second look.
        here = (*box, *[slice(None)] * (reference.ndim - axis))
        others = tuple(other for other in range(reference.ndim) if other != axis)
        filled = np.flatnonzero(prediction[here].any(axis=others) | reference[here].any(axis=others))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, 0))
    return tuple(box)


def count_lesions(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[int, int, int]:
    """Return the reference's lesions, how many of them were found, and how many predicted are invented."""
    neighbours = np.ones((3,) * reference.ndim, dtype=bool)
    true, lesions = ndimage.label(reference, structure=neighbours)
    predicted, components = ndimage.label(prediction, structure=neighbours)
    detected = np.count_nonzero(np.bincount(true[prediction], minlength=lesions + 1)[1:])
    touching = np.count_nonzero(np.bincount(predicted[reference], minlength=components + 1)[1:])
    return int(lesions), int(detected), int(components - touching)


def surface_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: ArrayLike, form: Form = "voxel"
) -> Surfaces:
    """Return the distances between two surfaces, neither of which may be empty."""
    if not (prediction.any() and reference.any()):
        raise LabelError("distances need a prediction and a reference that both hold the structure")
    box = bounding_box(prediction, reference)
    prediction, reference = prediction[box], reference[box]
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if form == "voxel":
        edges = _edge(prediction), _edge(reference)
        weights = [np.ones(int(np.count_nonzero(mark))) for mark in edges]
    else:
        edges, weights = _surfels(prediction, reference, spacing)
    offsets, near_mm = _near(spacing)
    reach = np.abs(offsets).max(axis=0)
    first, second = (np.pad(mark, [(int(size), int(size)) for size in reach]) for mark in edges)
    return Surfaces(
        _nearest(first, second, offsets, near_mm, spacing),
        _nearest(second, first, offsets, near_mm, spacing),
        weights[0],
        weights[1],
    )


def _near(spacing_mm: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the steps (N, axes) to all voxels within a ball of about NEIGHBOURHOOD_VOXELS voxels, nearest
    first, and their lengths.
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
    """Return the distance in mm from each marked element to the nearest of the other surface, both
    padded by the offsets.

    In a usable prediction most elements have the other surface within a few voxels: those are looked up voxel
    by voxel, nearest first, which is several times faster than a tree. The tree answers for the rest.
    """
    strides = np.array([int(np.prod(mark.shape[axis + 1 :])) for axis in range(mark.ndim)])
    steps = offsets @ strides
    places, there = np.flatnonzero(mark), other.ravel()
    distances = np.zeros(len(places))
    left = np.arange(len(places))
    for start in range(0, len(steps), OFFSETS_PER_STEP):
        hits = there[steps[start : start + OFFSETS_PER_STEP, None] + places[left]]
        found = hits.any(axis=0)
        distances[left[found]] = near_mm[start + hits[:, found].argmax(axis=0)]
        left = left[~found]
        if not len(left):
            return distances
    # An unbalanced tree is built in half the time and searched as fast: surfaces have no coincident points.
    tree = cKDTree(np.argwhere(other) * spacing_mm, leafsize=32, balanced_tree=False, compact_nodes=False)
    points = np.stack(np.unravel_index(places[left], mark.shape), axis=1) * spacing_mm
    distances[left] = tree.query(points)[0]
    return distances


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask's voxels with a face neighbour outside, the border of the box being outside."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        first = [slice(None)] * mask.ndim
        last = list(first)
        first[axis], last[axis] = slice(0, -1), slice(1, None)
        inside[tuple(first)] &= mask[tuple(last)]
        inside[tuple(last)] &= mask[tuple(first)]
        first[axis], last[axis] = slice(0, 1), slice(-1, None)
        inside[tuple(first)] = False
        inside[tuple(last)] = False
    return mask & ~inside


def _surfels(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
) -> tuple[tuple[NDArray[np.bool_], NDArray[np.bool_]], list[NDArray[np.float64]]]:
    # The table of areas of the 256 neighbourhoods is MONAI's (from DeepMind's, Apache-2.0); it needs torch.
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area

    if reference.ndim != 3:
        raise LabelError(f"the surfel form needs three axes, found {reference.ndim}; use the voxel form")
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
    """Return the share of both surfaces that lies within the tolerance of the other one."""
    near = surfaces.prediction_weights[surfaces.to_reference_mm <= tolerance_mm].sum()
    near += surfaces.reference_weights[surfaces.to_prediction_mm <= tolerance_mm].sum()
    return float(near / (surfaces.prediction_weights.sum() + surfaces.reference_weights.sum()))


def mean_distance_of(surfaces: Surfaces) -> float:
    """Return the mean distance over the elements of both surfaces, weighted by their areas in surfel form."""
    total = surfaces.to_reference_mm @ surfaces.prediction_weights
    total += surfaces.to_prediction_mm @ surfaces.reference_weights
    return float(total / (surfaces.prediction_weights.sum() + surfaces.reference_weights.sum()))


def hausdorff_of(surfaces: Surfaces, quantile: float, form: Form = "voxel") -> float:
    """Return the larger of both directed quantiles, interpolated (voxel form) or by area (surfel form)."""
    if form == "voxel":
        return max(
            float(np.quantile(surfaces.to_reference_mm, quantile)),
            float(np.quantile(surfaces.to_prediction_mm, quantile)),
        )
    return max(
        _area_quantile(surfaces.to_reference_mm, surfaces.prediction_weights, quantile),
        _area_quantile(surfaces.to_prediction_mm, surfaces.reference_weights, quantile),
    )


def _area_quantile(distances: NDArray[np.float64], areas: NDArray[np.float64], quantile: float) -> float:
    order = np.argsort(distances, kind="stable")
    share = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(int(np.searchsorted(share, quantile)), len(order) - 1)])
