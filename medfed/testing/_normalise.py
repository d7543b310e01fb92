"""The contract of a normalisation: shape, dtype, order and input stay; each channel counts by itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medfed.data.normalise import Normalise
from medfed.testing._contract import OF_EVERY_KIND, Contract

check_normalise: Contract[Normalise] = Contract("normalisation", OF_EVERY_KIND)


def volume() -> NDArray[np.float32]:
    """Return two channels of intensities like those of a CT, (C, X, Y, Z)."""
    return np.random.default_rng(1).normal(60, 200, (2, 9, 8, 7)).astype(np.float32)


@check_normalise.check
def shape_and_dtype_stay_and_values_are_finite(normalise: Normalise) -> None:
    normalised = normalise.image(volume())
    assert normalised.shape == volume().shape
    assert normalised.dtype == np.float32
    assert np.isfinite(normalised).all()


@check_normalise.check
def the_input_is_not_changed(normalise: Normalise) -> None:
    voxels = volume()
    normalise.image(voxels)[:] = 7
    np.testing.assert_array_equal(voxels, volume())


@check_normalise.check
def a_constant_image_becomes_a_finite_constant(normalise: Normalise) -> None:
    normalised = normalise.image(np.full((1, 4, 4, 4), 1.7e6, np.float32))
    assert np.isfinite(normalised).all()
    assert np.ptp(normalised) == 0


@check_normalise.check
def the_order_of_intensities_stays(normalise: Normalise) -> None:
    voxels = volume()[0]
    order = np.argsort(voxels, axis=None)
    assert (np.diff(normalise.channel(voxels).ravel()[order]) >= 0).all()


@check_normalise.check
def one_channel_does_not_change_another(normalise: Normalise) -> None:
    alone = normalise.image(volume()[:1])
    np.testing.assert_array_equal(normalise.image(volume())[:1], alone)
