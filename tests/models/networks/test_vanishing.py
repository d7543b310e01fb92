"""A network that would see one number of an image is refused; the layers are those counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medfed.errors import StudyError
from medfed.models.networks._vanishing import check_vanishing, vanishing_layers
from medfed.models.networks.resnet import ResNet


def test_a_resnet_with_pooling_needs_more_than_eight_voxels_on_one_side() -> None:
    # Pooling and three stages halve: 8 voxels are 4, 2, 1 before the last stage halves again, 9 are 5, 3, 2.
    with pytest.raises(StudyError, match=r"8 x 8 x 8 voxels is one voxel .* at least 9; .*max_pool: false"):
        ResNet().build(1, 2, (8, 8, 8))
    ResNet(width=2).build(1, 2, (8, 8, 9))
    ResNet(width=2, max_pool=False).build(1, 2, (8, 8, 8))
    with pytest.raises(StudyError, match="at least 17"):
        ResNet(first_stride=2).check_size((16, 16, 16))


def test_a_group_norm_of_one_number_answers_alike_for_every_image() -> None:
    # 4 voxels are 2 and 1; then 4 features in 4 groups leave one number per group.
    stages = nn.Sequential(nn.Conv2d(1, 4, 2, 2), nn.Conv2d(4, 4, 2, 2), nn.GroupNorm(4, 4))
    first, second = stages(torch.rand(2, 1, 4, 4))
    assert torch.allclose(first, second, atol=1e-4)
    assert first.abs().max() < 1e-4
    assert vanishing_layers(stages, 1, (4, 4)) == ["2"]
    assert vanishing_layers(stages, 1, (8, 8)) == []
    with pytest.raises(StudyError, match=r"'mine': of an image of 4 x 4 voxels only one number .* layer '2'"):
        check_vanishing(stages, "mine", 1, (4, 4))


def test_strides_norms_and_pooling_are_followed_in_order_and_nothing_is_changed() -> None:
    network = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 2, 3, 2, padding=1), nn.InstanceNorm2d(2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert vanishing_layers(network, 1, (2, 2)) == ["1", "2"]
    assert vanishing_layers(network, 1, (4, 2)) == ["2"]
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_network_that_looks_at_numbers_is_followed_as_far_as_it_goes() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.norm = nn.MaxPool2d(2), nn.InstanceNorm2d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.pool(x)
            return self.norm(x) if x.max() > 0 else x

    assert vanishing_layers(Looks(), 1, (1, 1)) == ["pool"]
