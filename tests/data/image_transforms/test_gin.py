"""GIN and IPA against the same networks computed by scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import correlate

from medfed.data.image_transforms.gin import GIN

RANDOM = np.random.default_rng


def network(image: np.ndarray, random: np.random.Generator, gin: GIN) -> np.ndarray:
    """Return an image (C, X, Y, Z) after one network, from the same stream of numbers, by scipy."""
    result, channels = image.astype(np.float64), len(image)
    for layer in range(gin.layers):
        side = gin.largest_kernel if random.random() < 0.5 else 1
        outputs = channels if layer == gin.layers - 1 else gin.features
        weights = random.standard_normal((outputs, len(result), side, side, side))
        shifts = random.standard_normal(outputs)
        result = np.stack(
            [
                sum(correlate(one, kernel, mode="constant") for one, kernel in zip(result, own, strict=True))
                + shift
                for own, shift in zip(weights, shifts, strict=True)
            ]
        )
        if layer < gin.layers - 1:
            result = np.where(result > 0, result, 0.01 * result)
    share = random.random()
    blended = share * image + (1 - share) * result
    norms = [np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(image, blended, strict=True)]
    return blended * np.array(norms).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gin_is_a_random_network_blended_and_brought_to_the_old_norm(channels: int, seed: int) -> None:
    image = RANDOM(9).normal(0, 1, (channels, 7, 6, 5)).astype(np.float32)
    label = (image[:1] > 0).astype(np.int64)
    gin = GIN(probability=1)
    changed, same = gin.augmented(image, label, RANDOM(seed))
    random = RANDOM(seed)
    random.random()  # whether it is changed
    np.testing.assert_allclose(changed, network(image, random, gin), atol=1e-4)
    assert same is label
    for one, other in zip(image, changed, strict=True):
        assert np.linalg.norm(other) == pytest.approx(np.linalg.norm(one), rel=1e-5)


def test_ipa_blends_two_networks_by_a_smooth_map() -> None:
    image = RANDOM(9).normal(0, 1, (1, 7, 6, 5)).astype(np.float32)
    gin = GIN(probability=1, interventional=True, spacing=8)
    changed, _ = gin.augmented(image, None, RANDOM(4))
    random = RANDOM(4)
    random.random()
    first = network(image, random, gin)
    points = random.random((1, 1, 2, 2, 2))[0, 0]  # a control point at each corner
    second = network(image, random, gin)
    x, y, z = (np.linspace(0, 1, side) for side in image.shape[1:])
    sides = [np.stack([1 - axis, axis]) for axis in (x, y, z)]
    share = np.einsum("abc,ax,by,cz->xyz", points, *sides)
    np.testing.assert_allclose(changed[0], share * first[0] + (1 - share) * second[0], atol=1e-4)


def test_an_empty_image_stays_finite() -> None:
    changed, _ = GIN(probability=1, interventional=True).augmented(
        np.zeros((1, 5, 5, 5), np.float32), None, RANDOM(0)
    )
    np.testing.assert_array_equal(changed, 0)
