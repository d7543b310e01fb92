"""Sizes of images that a network sees whole, and images with and without a size in mm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfed.data.case import Case
from medfed.data.datamodule import SiteDataModule
from medfed.data.preflight.preflight import check
from medfed.data.preflight.study_checks import StudyRequirements
from medfed.data.refusals import UnsuitableSizeError
from medfed.data.settings import Images, Unreadable
from medfed.data.transforms import prepare, prepared_shape
from medfed.data.volume import Volume
from medfed.data.whole_images import Extent, check_extents, check_whole_size, different_units, unit_of
from medfed.errors import DataError, StudyError

from .hospital_folder import SECRET, folder_of, image_of, label_of, row, write_nifti

WHOLE = Images(spacing_mm="native", patch=None)
PLANES = Images(spatial_dims=2, spacing_mm="native", patch=None)


def multiples_of_4(size: tuple[int, ...]) -> None:
    if any(side % 4 for side in size):
        raise StudyError("network 'unet': its sides must be multiples of 4")


def case_of(token: str, split: str = "train") -> Case:
    return Case(token, token, token, (Path("x"),), split=split)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR"])
@pytest.mark.parametrize("spacing", ["native", (2.0, 1.0, 0.5)])
def test_the_prepared_size_is_known_without_preparing(orientation: str, spacing: object) -> None:
    # Stored along front, head and left: 4 rows of 3 mm to the front, 5 of 2 mm up, 6 of 1 mm to the left.
    affine = np.array([[0, 0, -1.0, 0], [3, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    image = Volume(np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32), affine)
    settings = Images(spacing_mm=spacing, patch=None, orientation=orientation)  # type: ignore[arg-type]
    expected = prepare(image, None, settings).image.shape[1:]
    assert prepared_shape(image, settings) == expected
    if spacing == "native":  # by hand: x has 6 voxels, y 4, z 5
        assert expected == {"RAS": (6, 4, 5), "LPS": (6, 4, 5), "SAR": (5, 4, 6)}[orientation]


def test_the_prepared_size_of_slices_is_that_of_their_plane() -> None:
    image = Volume(np.zeros((1, 4, 5, 6), np.float32), np.diag([1.0, 2, 3, 1]))
    settings = Images(spatial_dims=2, slices="coronal", spacing_mm=(1.0, 1.5), patch=(8, 8))
    # Coronal planes lie along R (4 of 1 mm) and S (6 of 3 mm: 12 of 1.5 mm).
    assert prepared_shape(image, settings) == (4, 12)
    assert prepare(image, None, settings).image.shape[1:3] == (4, 12)


def test_a_size_that_the_network_cannot_take_costs_its_case() -> None:
    check_whole_size(Extent((8, 4, 4)), WHOLE, multiples_of_4)
    check_whole_size(Extent((8, 4, 5)), Images(patch=(8, 8, 8)), multiples_of_4)
    with pytest.raises(UnsuitableSizeError, match=r"no data\.patch.*network 'unet': its sides must be"):
        check_whole_size(Extent((8, 4, 5)), WHOLE, multiples_of_4)


def test_whole_images_of_one_batch_have_one_size() -> None:
    cases = [case_of("a"), case_of("b"), case_of("c", "test")]
    extents = {"a": Extent((4, 4, 4)), "b": Extent((4, 4, 4)), "c": Extent((8, 8, 8))}
    check_extents(cases, extents, WHOLE, batch=2)  # only training images are put into batches
    extents["b"] = Extent((4, 4, 5))
    check_extents(cases, extents, WHOLE, batch=1)
    check_extents(cases, extents, Images(patch=(4, 4, 4)), batch=2)
    with pytest.raises(DataError, match=r"2 different sizes.*batches of 2; set data\.patch, or train\.batch"):
        check_extents(cases, extents, WHOLE, batch=2)


def test_whole_images_of_validation_have_the_same_size_where_they_train() -> None:
    cases = [case_of("a"), case_of("b", "val"), case_of("c", "test")]
    extents = {"a": Extent((4, 4, 4)), "b": Extent((4, 4, 5)), "c": Extent((8, 8, 8))}
    check_extents(cases, extents, WHOLE, batch=2)
    with pytest.raises(DataError, match=r"2 different sizes.*set data\.patch, or train\.batch to 1"):
        check_extents(cases, extents, WHOLE, batch=2, training=("train", "val"))


def test_images_with_and_without_mm_are_mixed_only_where_each_is_scaled() -> None:
    cases = [case_of("a"), case_of("b")]
    extents = {"a": Extent((4, 4), in_pixels=True), "b": Extent((4, 4))}
    check_extents(cases, extents, Images(spatial_dims=2, spacing_mm="fit", patch=(4, 4)))
    with pytest.raises(DataError, match="1 of 2 images have no size in mm and the others have one"):
        check_extents(cases, extents, PLANES)
    assert unit_of(extents.values(), PLANES) == "mm"
    assert unit_of([extents["a"]], PLANES) == "px"
    assert unit_of([extents["a"]], Images(spatial_dims=2, spacing_mm="fit", patch=(4, 4))) == ""
    said = different_units({"north": "mm", "south": "px", "west": "", "east": "px"})
    assert said.startswith("the images of east, south have no size in mm and those of north have one")
    assert different_units({"north": "px", "south": "px", "west": ""}) == ""


def test_check_and_training_leave_out_the_same_whole_images(tmp_path: Path) -> None:
    """Two images of 8 x 4 x 4 and one of 6 x 5 x 4, which a network of two halvings cannot take."""
    folder = folder_of(tmp_path, [row("a"), row("b"), row("c")])
    for name in ("a", "b"):
        write_nifti(image_of(folder, name), np.random.default_rng(1).normal(size=(8, 4, 4)))
        write_nifti(label_of(folder, name), np.ones((8, 4, 4), "u1"))
    data = SiteDataModule.open(folder, WHOLE, "segment", site_secret=SECRET, classes=2)
    data.check_size = multiples_of_4
    data.leave_out(data.screen(), Unreadable())
    assert data.left_out == {"size that the network cannot take": 1}
    requirements = StudyRequirements("s", WHOLE, "segment", ("b", "x"), check_size=multiples_of_4)
    preflight = check(folder, site_secret=SECRET, requirements=requirements, processes=1)
    assert {"unsuitable_size"} <= {problem.code for problem in preflight.problems}
    assert preflight.usable == {"train": 2}
    assert "with 2 of 3 cases; 1 cannot be used" in preflight.verdict
