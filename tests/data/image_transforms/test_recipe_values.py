"""The random transforms of nnU-Net's set, each by a value derived by hand or with another library."""

from __future__ import annotations

import numpy as np
import pytest
from monai.transforms import AdjustContrast, GaussianSmooth
from scipy.ndimage import zoom

from medfed.data.image_transforms.blur import Blur
from medfed.data.image_transforms.brightness import Brightness
from medfed.data.image_transforms.contrast import Contrast
from medfed.data.image_transforms.elastic import Elastic
from medfed.data.image_transforms.gamma import Gamma
from medfed.data.image_transforms.low_resolution import LowResolution
from medfed.errors import DataError

RANDOM = np.random.default_rng
IMAGE = RANDOM(3).normal(0, 1, (2, 12, 10, 8)).astype(np.float32)
LABEL = (IMAGE[:1] > 1).astype(np.int64)


def test_brightness_is_a_factor() -> None:
    brighter, label = Brightness(probability=1, low=2, high=2).augmented(IMAGE, LABEL, RANDOM(0))
    np.testing.assert_allclose(brighter, 2 * IMAGE)
    assert label is LABEL


def test_contrast_is_about_the_mean_and_within_the_old_range() -> None:
    image = np.array([0.0, 1.0, 2.0, 3.0, 4.0], np.float32).reshape(1, 5, 1, 1)
    # The mean is 2: the distances -2, -1, 0, 1, 2 become -3, -1.5, 0, 1.5, 3, cut at 0 and 4.
    changed, _ = Contrast(probability=1, low=1.5, high=1.5).augmented(image, None, RANDOM(0))
    np.testing.assert_allclose(changed[0, :, 0, 0], [0, 0.5, 2, 3.5, 4])
    # A channel's own mean and range, whatever the other channel holds.
    two, _ = Contrast(probability=1, low=1.5, high=1.5).augmented(
        np.concatenate([image, image + 100]), None, RANDOM(0)
    )
    np.testing.assert_allclose(two[1] - 100, changed[0], atol=1e-5)


def test_blur_is_monais_gaussian_in_the_middle() -> None:
    blurred, _ = Blur(probability=1, low=0.7, high=0.7).augmented(IMAGE, None, RANDOM(0))
    # MONAI fills up with zeros, so the border differs; its "sampled" kernel is cut at 4 sigma.
    other = GaussianSmooth((0.7, 0.7, 0.7), approx="sampled")(IMAGE).numpy()
    inside = (slice(None), *(slice(3, -3),) * 3)
    np.testing.assert_allclose(blurred[inside], other[inside], atol=2e-3)
    constant = np.full((1, 6, 6, 6), 3.0, np.float32)
    np.testing.assert_allclose(Blur(probability=1).augmented(constant, None, RANDOM(0))[0], 3, rtol=1e-6)


def test_low_resolution_keeps_the_nearest_voxels_and_interpolates_between_them() -> None:
    image = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1)
    coarse, _ = LowResolution(probability=1, low=0.5, high=0.5).augmented(image, None, RANDOM(0))
    # Of 8 voxels 1, 3, 5, 7 are nearest to the middles of the 4 coarse ones (1, 3, 5, 7 in half voxels,
    # rounded up), which lie at 0.5, 2.5, 4.5, 6.5: linear between them, constant beyond.
    expected = [1, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7]
    np.testing.assert_allclose(coarse[0, :, 0, 0], expected, rtol=1e-6)
    grid = zoom(np.array([1.0, 3, 5, 7]), 2, order=1, grid_mode=True, mode="nearest")
    np.testing.assert_allclose(grid, expected)
    same, _ = LowResolution(probability=1, low=1, high=1).augmented(IMAGE, None, RANDOM(0))
    np.testing.assert_array_equal(same, IMAGE)


def test_elastic_moves_image_and_label_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_along_x(self: Elastic, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")) + np.array([1, 0, 0]).reshape(
            3, 1, 1, 1
        )

    monkeypatch.setattr(Elastic, "moved", one_along_x)
    image, label = Elastic(probability=1).augmented(IMAGE, LABEL, RANDOM(0))
    for moved, original in ((image, IMAGE), (label, LABEL)):
        np.testing.assert_allclose(moved[:, :-1], original[:, 1:], atol=1e-6)
        np.testing.assert_allclose(moved[:, -1], original[:, -1], atol=1e-6)


def test_elastic_displacements_are_those_of_the_control_points() -> None:
    where = Elastic(voxels=2, spacing=16).moved((12, 10, 8), RANDOM(5))
    # Sides up to 16 have two control points each, which are the corners.
    points = RANDOM(5).normal(0, 2, (1, 3, 2, 2, 2))[0]
    np.testing.assert_allclose(where[:, 0, 0, 0], points[:, 0, 0, 0])
    np.testing.assert_allclose(where[:, 11, 0, 7], points[:, 1, 0, 1] + [11, 0, 7])
    middle = where[:, :, 0, 0] - np.stack([np.arange(12), np.zeros(12), np.zeros(12)])
    share = np.arange(12) / 11
    straight = points[:, 0, 0, 0, None] * (1 - share) + points[:, 1, 0, 0, None] * share
    np.testing.assert_allclose(middle, straight, atol=1e-12)


def test_gamma_is_monais() -> None:
    one = IMAGE[:1]
    changed, _ = Gamma(probability=1, low=1.7, high=1.7).augmented(one, None, RANDOM(0))
    np.testing.assert_allclose(changed, AdjustContrast(1.7)(one).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", [Brightness, Contrast, Blur, LowResolution])
def test_none_of_them_changes_an_image_without_chance_and_limits_are_in_order(kind: type) -> None:
    image, label = kind(probability=0).augmented(IMAGE, LABEL, RANDOM(0))
    assert image is IMAGE
    assert label is LABEL
    # 0.15 of 2,000 images and 3 standard deviations, sqrt(.15 * .85 / 2000) each.
    random = RANDOM(1)
    changed = [kind(probability=0.15).draw(random) is not None for _ in range(2000)]
    assert abs(np.mean(changed) - 0.15) < 3 * (0.15 * 0.85 / 2000) ** 0.5
    with pytest.raises(DataError, match=r": low is 0\.9, high is 0\.5; low is at most high"):
        kind(low=0.9, high=0.5)
