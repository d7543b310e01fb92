"""The contract of a normalisation names what naive ones break."""

from __future__ import annotations

import numpy as np
import pytest
from contract import CHECKS_OF_EVERY_KIND, broken

from medfed.data.normalise import Normalise
from medfed.testing import check_normalise


class Tissue(Normalise, frozen=True, tag="tissue"):
    """Maps -160 to 240 HU linearly to -1 to 1."""

    def channel(self, voxels):
        return ((voxels - 40) / 200).astype(np.float32)


class InPlace(Normalise, frozen=True, tag="in_place"):
    """Subtracts the mean and divides by the deviation, in place."""

    def channel(self, voxels):
        voxels -= voxels.mean()
        with np.errstate(all="ignore"):
            voxels /= voxels.std()
        return voxels


class Inverse(Normalise, frozen=True, tag="inverse"):
    """Turns dark into bright, in double precision."""

    def channel(self, voxels):
        return -voxels.astype(np.float64)


class Together(Normalise, frozen=True, tag="together"):
    """Divides all channels by the largest voxel of them all."""

    def channel(self, voxels):
        return voxels / voxels.max()

    def image(self, voxels):
        return voxels / voxels.max()


WRONG = {
    InPlace: {"the_input_is_not_changed", "a_constant_image_becomes_a_finite_constant"},
    Inverse: {"shape_and_dtype_stay_and_values_are_finite", "the_order_of_intensities_stays"},
    Together: {"one_channel_does_not_change_another"},
}


def test_a_right_one_passes() -> None:
    check_normalise(Tissue())


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_one_is_named(kind: type[Normalise]) -> None:
    assert broken(check_normalise, kind()) == WRONG[kind]


def test_each_check_is_broken_by_one_of_them() -> None:
    assert set().union(*WRONG.values(), CHECKS_OF_EVERY_KIND) == set(check_normalise.checks)
