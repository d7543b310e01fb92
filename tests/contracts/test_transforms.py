"""Every transform keeps the contract of medfed.testing, which finds what breaks it."""

from __future__ import annotations

import numpy as np
import pytest
from contract import checks_of, run

from medfed.data.image_transforms import Transform
from medfed.data.image_transforms.gamma import Gamma
from medfed.errors import DataError
from medfed.registry import kinds
from medfed.testing import check_transform

KINDS = kinds("transforms")


@checks_of(check_transform)
@pytest.mark.parametrize("name", sorted(KINDS))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    run(check_transform, check, KINDS[name]())


def test_gamma_is_a_power_of_each_channels_share_of_its_range() -> None:
    image = np.array([[[0.0, 1.0], [2.0, 4.0]], [[-1.0, 0.0], [1.0, 3.0]]], np.float32)[..., None]
    squared, label = Gamma(probability=1, low=2, high=2).augmented(image, None, np.random.default_rng(0))
    # Of the range 0 to 4: 0, 1/4, 1/2, 1 squared; both channels have the same shares.
    expected = np.array([0, 1 / 16, 1 / 4, 1]).reshape(2, 2) * 4
    np.testing.assert_allclose(squared[0, ..., 0], expected, rtol=1e-6)
    np.testing.assert_allclose(squared[1, ..., 0], expected - 1, rtol=1e-6)
    assert label is None
    same, _ = Gamma(probability=0).augmented(image, None, np.random.default_rng(0))
    np.testing.assert_array_equal(same, image)
    with pytest.raises(DataError, match=r"gamma: low is 3\.0, high is 1\.5; low is at most high"):
        Gamma(low=3.0)


class Cropping(Transform, frozen=True, tag="cropping"):
    """Cuts a voxel off, which would shift every prediction."""

    def prepared(self, image):
        return image[:, 1:]


class Careless(Transform, frozen=True, tag="careless"):
    """Draws from the global generator, and changes the image in place."""

    def augmented(self, image, label, random):
        image += np.random.normal()  # noqa: NPY002
        return image, label


@pytest.mark.parametrize(
    ("transform", "broken"),
    [
        (Cropping(), {"a_prepared_image_keeps_shape_and_dtype_and_is_finite"}),
        (Careless(), {"no_input_is_changed", "the_generator_that_is_handed_in_decides_alone"}),
    ],
)
def test_the_contract_names_what_is_broken(transform: Transform, broken: set[str]) -> None:
    with pytest.raises(AssertionError, match=f"breaks {len(broken)} promises of a transform") as error:
        check_transform(transform)
    assert {name for name in check_transform.checks if f"  {name}: " in str(error.value)} == broken
