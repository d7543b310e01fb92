"""The scale, the patch and the normalisation of drafted 2D studies, derived by hand from sizes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from medfed.errors import DataError
from medfed.pipeline._draft_planes import are_planes, plane_grid, plane_normalisation


def spread(least: list[float], median: list[float] | None = None, most: list[float] | None = None):
    return {"least": least, "median": median or least, "most": most or least}


def folder(size: dict, spacing_mm: dict | None = None, in_pixels: bool = False, **facts: Any):
    spacing_mm = spacing_mm or spread([1, 1, 1])
    return SimpleNamespace(facts={"size": size, "spacing_mm": spacing_mm, "in_pixels": in_pixels, **facts})


def test_a_study_is_of_planes_or_of_volumes() -> None:
    plane, volume = folder(spread([10, 10, 1])), folder(spread([10, 10, 1], most=[10, 10, 2]))
    assert are_planes({"north": plane, "south": plane})
    assert not are_planes({"north": volume})
    with pytest.raises(
        DataError, match=r"^north: images of one plane, and south: volumes; a study has either"
    ):
        are_planes({"north": plane, "south": volume})


def test_small_images_of_one_size_keep_their_pixels() -> None:
    grid, warnings = plane_grid({"north": folder(spread([33, 64, 1])), "south": folder(spread([33, 64, 1]))})
    assert (grid.spacing_mm, grid.patch, grid.small, warnings) == ("native", "[64, 64]", True, [])
    grid, _ = plane_grid({"north": folder(spread([65, 256, 1]))})
    assert (grid.spacing_mm, grid.patch, grid.small) == ("native", "[96, 256]", False)


def test_pictures_of_several_sizes_are_scaled_into_a_patch_of_at_most_256() -> None:
    sizes = spread([100, 100, 1], median=[1000, 500, 1], most=[2000, 2000, 1])
    grid, warnings = plane_grid({"north": folder(sizes, in_pixels=True)})
    # The median's longer side becomes 256 pixels, its shorter one 128.
    assert (grid.spacing_mm, grid.patch, grid.small, warnings) == ("fit", "[256, 128]", False, [])


def test_images_in_mm_are_scaled_to_the_largest_hospitals_extent() -> None:
    north = folder(spread([100, 200, 1], most=[120, 200, 1]), spread([0.5, 0.5, 1]))
    south = folder(spread([400, 400, 1]), spread([1, 1, 1]))
    # At most 400 x 400 mm in 256 pixels: 400 / 256 = 1.5625, to three digits 1.56; 400 / 1.56 = 256.4.
    grid, _ = plane_grid({"north": north, "south": south})
    assert (grid.spacing_mm, grid.patch) == ("[1.56, 1.56]", "[256, 256]")


def test_images_with_and_without_mm_are_not_compared_in_distances() -> None:
    mixed = {"north": folder(spread([300, 300, 1]), in_pixels=True), "south": folder(spread([300, 300, 1]))}
    _, (warning,) = plane_grid(mixed)
    assert warning.startswith("north: images without a size in mm; distances are in pixels there")


def test_colours_of_eight_bits_are_scaled_alike_and_all_else_by_percentiles() -> None:
    def one(least: float, most: float, colours: int = 1):
        intensity = {"least": [least, 0, 0], "most": [0, 0, most]}
        return {"north": folder(spread([8, 8, 1]), colours=colours, intensity=intensity)}

    window, percentile = "{kind: window, low: 0, high: 255}", "{kind: percentile}"
    assert plane_normalisation(one(0, 255), "3").startswith(window)
    assert plane_normalisation(one(0, 255), "1") == percentile
    assert plane_normalisation(one(0, 256), "3") == percentile
    assert plane_normalisation(one(-1, 255), "3") == percentile
    assert plane_normalisation(one(0, 255, colours=0), "3") == percentile
