"""The drafted settings of 2D studies: the scale of planes, their normalisation, and the size of the patch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medfed.data.preflight.preflight import Preflight
from medfed.errors import DataError
from medfed.pipeline._draft import yaml_inline

Preflights = Mapping[str, Preflight]

# A network sees a plane with at most this many pixels per side, in multiples of SIDE_STEP, which five
# halvings divide.
MAX_SIDE_PX = 256
SIDE_STEP = 32
# Up to this many pixels, a network keeps the full resolution in its first layer.
SMALL_SIDE_PX = 64
# The range of 8-bit images, whose colours keep their meaning if all channels are scaled alike.
BYTE_RANGE = (0, 255)


@dataclass(frozen=True)
class PlaneGrid:
    """The `spacing_mm` and `patch` of a draft, as YAML, and the reason for the first.

    small: whether a network should keep the full resolution in its first layer.
    """

    spacing_mm: str
    patch: str
    reason: str
    small: bool


def are_planes(preflights: Preflights) -> bool:
    """Whether all images of all hospitals are single planes.

    Raises:
        DataError: if those of some hospitals are and those of others are not.
    """
    flat = {site: one.facts["size"]["most"][2] == 1 for site, one in preflights.items()}
    if any(flat.values()) and not all(flat.values()):
        planes = ", ".join(site for site, is_flat in flat.items() if is_flat)
        volumes = ", ".join(site for site, is_flat in flat.items() if not is_flat)
        raise DataError(
            f"{planes}: images of one plane, and {volumes}: volumes; a study has either, or in 2D the slices "
            "of volumes (data.slices)"
        )
    return all(flat.values())


def plane_grid(preflights: Preflights) -> tuple[PlaneGrid, list[str]]:
    """Return how planes are scaled, and a warning if some have a size in mm and others have none."""
    without_mm = {site for site, one in preflights.items() if one.facts["in_pixels"]}
    sizes = [one.facts["size"] for one in preflights.values()]
    spacings = [one.facts["spacing_mm"] for one in preflights.values()]
    sides = {tuple(size[which][:2]) for size in sizes for which in ("least", "most")}
    lengths = {mm for one in spacings for which in ("least", "most") for mm in one[which][:2]}
    if len(sides) == 1 and len(lengths) == 1 and max(next(iter(sides))) <= MAX_SIDE_PX:
        patch = [_rounded_up(side) for side in next(iter(sides))]
        grid = PlaneGrid("native", yaml_inline(patch), "all images have this size", _is_small(patch))
    elif without_mm:
        longest = max((size["median"][:2] for size in sizes), key=max)
        side = min(MAX_SIDE_PX, _rounded_up(max(longest)))
        patch = [_rounded_up(length * side / max(longest)) for length in longest]
        reason = "each image is scaled into the patch, as pictures have no size in mm"
        grid = PlaneGrid("fit", yaml_inline(patch), reason, _is_small(patch))
    else:
        grid = _grid_in_mm(sizes, spacings)
    warnings = []
    if without_mm and without_mm != set(preflights):
        warnings.append(
            f"{', '.join(sorted(without_mm))}: images without a size in mm; distances are in pixels there "
            "and in mm elsewhere, and are not compared"
        )
    return grid, warnings


def _grid_in_mm(sizes: list[dict[str, list[float]]], spacings: list[dict[str, list[float]]]) -> PlaneGrid:
    """Return one scale for all images, at which the largest hospital's median image fits into the patch."""
    extents = [
        [n * mm for n, mm in zip(size["median"][:2], spacing["median"][:2], strict=True)]
        for size, spacing in zip(sizes, spacings, strict=True)
    ]
    largest = [max(axis) for axis in zip(*extents, strict=True)]
    finest = min(mm for spacing in spacings for mm in spacing["median"][:2])
    step_mm = float(f"{max(finest, max(largest) / MAX_SIDE_PX):.3g}")
    patch = [_rounded_up(extent / step_mm) for extent in largest]
    reason = "the largest hospital's images fit into the patch"
    return PlaneGrid(yaml_inline([step_mm, step_mm]), yaml_inline(patch), reason, _is_small(patch))


def _rounded_up(side: float) -> int:
    return max(1, -(-round(side) // SIDE_STEP)) * SIDE_STEP


def _is_small(patch: list[int]) -> bool:
    return max(patch) <= SMALL_SIDE_PX


def plane_normalisation(preflights: Preflights, channels: str) -> str:
    """Return `data.normalise` as YAML: one range for colours, each image's own percentiles for grey."""
    ranges = [one.facts["intensity"] for one in preflights.values() if one.facts["intensity"]]
    low, high = BYTE_RANGE
    bytes_only = all(one["least"][0] >= low and one["most"][2] <= high for one in ranges)
    if channels == "3" and bytes_only and any(one.facts["colours"] for one in preflights.values()):
        return f"{{kind: window, low: {low}, high: {high}}}   # colours of 8 bits, scaled alike"
    return "{kind: percentile}"
