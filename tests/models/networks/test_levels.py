"""Strides and kernels that follow from the voxel size: by hand, in nnU-Net's order, and in a study."""

from __future__ import annotations

import msgspec
import pytest
import torch

from medfed.data.settings import Images
from medfed.errors import StudyError
from medfed.models.networks._levels import plan_levels
from medfed.models.networks.dynunet import DynUNet
from medfed.models.tasks.segment import Segment
from medfed.study.network import network_for, untrained_network
from medfed.study.study import Study, Train


def test_a_coarse_axis_waits_until_the_others_are_as_coarse():
    # Voxels of 1 x 1 x 5 mm: 5 / 1 and 5 / 2 are at least 2, 5 / 4 is not.
    levels = plan_levels((1.0, 1.0, 5.0), (64, 64, 16), 5)
    assert levels.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
    assert levels.kernels == ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3))


@pytest.mark.parametrize(
    ("spacing", "patch", "strides"),
    [
        # Just below twice as coarse is alike; 8 voxels are pooled to 4 and no further.
        ((1.0, 1.0, 1.9), (32, 32, 8), ((1, 1, 1), (2, 2, 2), (2, 2, 1), (2, 2, 1))),
        ((1.0, 1.0, 2.0), (32, 32, 8), ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 1))),
        # One slice is never pooled.
        ((1.0, 1.0, 9.0), (32, 32, 1), ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 1))),
        # Where one axis alone is left, it needs 12 voxels.
        ((1.0, 1.0, 1.0), (12, 7, 7), ((1, 1, 1), (2, 1, 1))),
        ((1.0, 1.0, 1.0), (11, 7, 7), ((1, 1, 1),)),
    ],
)
def test_what_is_pooled(spacing, patch, strides):
    assert plan_levels(spacing, patch, 9).strides == strides


def study(**data) -> Study:
    images = Images(spacing_mm=(1.0, 1.0, 5.0), patch=(32, 32, 8), **data)
    network = DynUNet(filters=(4, 8, 16), strides="spacing")
    task = Segment(classes=("background", "liver"))
    return Study(name="a", sites={"x": "x"}, task=task, network=network, data=images, train=Train(rounds=1))


def test_a_study_trains_the_planned_network():
    record = network_for(study())
    assert record == DynUNet(
        filters=(4, 8, 16),
        strides=((1, 1, 1), (2, 2, 1), (2, 2, 1)),
        kernels=((3, 3, 1), (3, 3, 1), (3, 3, 3)),
        spatial_dims=3,
    )
    network = untrained_network(study())
    assert network(torch.zeros(1, 1, 32, 32, 8)).shape == (1, 2, 32, 32, 8)
    kernels = {tuple(one.weight.shape[2:]) for one in network.modules() if type(one) is torch.nn.Conv3d}
    assert (3, 3, 1) in kernels


def test_before_the_data_are_planned_the_network_of_cubic_voxels_stands_for_it():
    unplanned = msgspec.structs.replace(study(), data=Images(plan={"voxels": 1000}))
    assert network_for(unplanned).strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    assert network_for(unplanned).kernels == ((3, 3, 3),) * 3


@pytest.mark.parametrize(
    ("network", "spacing", "patch", "message"),
    [
        (DynUNet(strides="spacing"), (1.0, 1.0, 1.0), None, "needs data.spacing_mm in mm and data.patch"),
        (DynUNet(strides="spacing"), None, (32, 32, 32), "needs data.spacing_mm in mm and data.patch"),
        (DynUNet(strides="spacing"), (1.0,) * 3, (32, 32, 16), "bears 4 levels, filters has 5 entries"),
        (DynUNet(strides="spacing", kernels=(3,) * 5), (1.0,) * 3, (64,) * 3, "plans the kernels, too"),
    ],
)
def test_what_cannot_be_planned_is_refused(network, spacing, patch, message):
    with pytest.raises(StudyError, match=f"network 'dynunet': .*{message}"):
        network.fitted(spacing, patch)


def test_a_network_that_was_not_fitted_says_so():
    with pytest.raises(StudyError, match="strides: spacing follows from the data; `fitted` gives"):
        DynUNet(strides="spacing").build(1, 2)
