"""The numbers of an image, by images whose intensities, noise and spacing are known."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.evaluation.drift.image_values import image_values, image_variables, noise


def ramp() -> np.ndarray:
    """Return an image whose voxels are 0 to 1000 in a plane, the same in each slice."""
    plane = np.linspace(0, 1000, 101 * 101).reshape(101, 101)
    return np.repeat(plane[..., None], 4, axis=2)


def test_percentiles_shape_and_geometry_by_hand() -> None:
    values = image_values(ramp()[None], (1.0, 2.0, 5.0), ("ct",))
    assert values["dark intensity"] == pytest.approx(50, rel=0.01)
    assert values["bright intensity"] == pytest.approx(950, rel=0.01)
    assert values["shape of the intensities"] == pytest.approx(0.5, abs=0.01)
    assert (values["finest spacing"], values["widest spacing"], values["largest extent"]) == (1.0, 5.0, 202.0)
    assert set(values) == {one.name for one in image_variables(("ct",))}


def test_a_gamma_moves_the_shape_and_a_gain_does_not() -> None:
    image = ramp()
    shape = "shape of the intensities"
    plain = image_values(image[None], (1, 1, 1), ("ct",))[shape]
    assert image_values(3 * image[None] + 7, (1, 1, 1), ("ct",))[shape] == pytest.approx(plain, abs=1e-6)
    # (x / 1000) ** 2 between its percentiles at 0.05, 0.5 and 0.95.
    gamma = image_values(((image / 1000) ** 2)[None], (1, 1, 1), ("ct",))[shape]
    assert gamma == pytest.approx((0.5**2 - 0.05**2) / (0.95**2 - 0.05**2), abs=0.01)


def test_noise_is_the_deviation_that_was_added() -> None:
    generator = np.random.default_rng(0)
    assert noise(ramp()) == pytest.approx(0, abs=1e-9)
    assert noise(ramp() + generator.normal(0, 20, (101, 101, 4))) == pytest.approx(20, rel=0.03)
    assert noise(np.zeros((2, 9, 1))) == 0.0


def test_constant_voxels_and_no_numbers_do_not_stop_it() -> None:
    values = image_values(np.full((1, 4, 4, 1), 5.0), (1, 1, 1), ("x",))
    assert (values["noise"], values["shape of the intensities"]) == (0.0, 0.5)
    spoiled = ramp()[None].copy()
    spoiled[0, 0, 0, 0] = np.nan
    assert np.isfinite(list(image_values(spoiled, (1, 1, 1), ("x",)).values())).all()


def test_each_of_several_channels_has_its_values() -> None:
    values = image_values(np.stack([ramp(), 2 * ramp()]), (1, 1, 1), ("t1", "t2"))
    assert values["bright intensity of t2"] == pytest.approx(2 * values["bright intensity of t1"])
    assert set(values) == {one.name for one in image_variables(("t1", "t2"))}
