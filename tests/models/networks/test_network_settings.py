"""Networks follow their settings, and the errors of wrong settings name a remedy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medfed.errors import StudyError
from medfed.models.networks.densenet121 import DenseNet121
from medfed.models.networks.dynunet import DynUNet
from medfed.models.networks.fully_connected import FullyConnected
from medfed.models.networks.resnet import ResNet
from medfed.models.networks.segresnet import SegResNet
from medfed.models.networks.swinunetr import SwinUNETR
from medfed.models.networks.unet import UNet
from medfed.models.networks.unetr import UNETR
from medfed.models.networks.vit import ViT

torch.set_num_threads(1)


def test_without_a_hidden_layer_it_is_the_linear_layer_that_torch_makes() -> None:
    torch.manual_seed(42)
    network = FullyConnected().build(13, 1)
    torch.manual_seed(42)
    linear = nn.Linear(13, 1)
    x = torch.randn(5, 13)
    assert torch.equal(network(x), linear(x))


def test_hidden_layers_have_the_sizes_asked_for() -> None:
    network = FullyConnected(hidden=(6, 4)).build(13, 2)
    shapes = [tuple(p.shape) for p in network.parameters()]
    assert shapes == [(6, 13), (6,), (4, 6), (4,), (2, 4), (2,)]


def test_a_patch_that_cannot_be_halved_names_those_that_can() -> None:
    with pytest.raises(
        StudyError, match=r"'unet': .*96 x 96 x 50 .* multiple of 16, such as 96 x 96 x 48 or 96 x 96 x 64"
    ):
        UNet().build(1, 2, (96, 96, 50))


def test_a_patch_with_thick_slices_needs_other_multiples_an_axis() -> None:
    network = DynUNet(filters=(4, 8, 8), strides=(1, (2, 2, 1), 2))
    network.build(1, 2, (8, 8, 6))
    with pytest.raises(StudyError, match=r"multiples of 4 x 4 x 2, such as 8 x 4 x 6 or 8 x 8 x 6"):
        network.build(1, 2, (8, 6, 6))


def test_one_voxel_left_to_an_instance_norm_is_refused() -> None:
    with pytest.raises(StudyError, match=r"16 x 16 x 16 voxels shrinks to one voxel .* norm: group"):
        UNet().build(1, 2, (16, 16, 16))
    network = UNet(norm="group").build(1, 2, (16, 16, 16))
    assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (UNet(channels=(8,)), "1 channels, a U-Net needs at least 2 levels"),
        (DynUNet(filters=(4, 8, 8), strides=(1, 2)), "3, 2 and 2 entries; each needs one per level"),
        (DynUNet(filters=(4, 8, 8), strides=(1, 2, (2, 2))), "strides: an entry is one number, or 3 numbers"),
        (DynUNet(filters=(4, 8, 8), strides=(1, 2, 2), deep_supervision=2), "of 3 levels at most 1"),
        (SegResNet(blocks_down=(1, 1), blocks_up=(1, 1)), "blocks_up needs one level less"),
        (SwinUNETR(features=13), "features: 13 must be a multiple of 12"),
        (SwinUNETR(heads=(5, 6, 12, 24)), "24 features of stage 1 a multiple of its 5 heads"),
        (ViT(hidden=10, heads=3), "hidden: 10 is not a multiple of heads: 3"),
        (DenseNet121(), None),
    ],
)
def test_settings_that_contradict_each_other_are_refused(network, message) -> None:
    size = (64, 64, 64)
    if message is None:
        with pytest.raises(StudyError, match=r"16 x 64 x 64 voxels is too small .* at least 32"):
            network.build(1, 2, (16, 64, 64))
        return
    with pytest.raises(StudyError, match=message):
        network.build(1, 2, size)


@pytest.mark.parametrize("network", [UNETR(), ViT()])
def test_position_embeddings_need_a_size(network) -> None:
    with pytest.raises(StudyError, match=r"is built for one image size; set data\.patch in the study"):
        network.build(1, 2, None)


def test_a_transformer_can_be_sure_of_a_class() -> None:
    """With MONAI's default, the logits pass through tanh and stay below 1."""
    network = ViT(token=4, hidden=8, mlp=8, layers=1, heads=2).build(1, 2, (8, 8, 8))
    with torch.no_grad():
        network.get_submodule(ViT.head).bias.fill_(5.0)
    assert network(torch.zeros(1, 1, 8, 8, 8)).max() > 3


def test_a_resnet_has_its_depth() -> None:
    convolutions = {
        depth: sum(isinstance(m, nn.Conv3d) for m in ResNet(depth=depth, width=2).build(1, 2).modules())
        for depth in (10, 18, 34, 50)
    }
    # Of `depth` layers one is linear; a shortcut convolution is added where the size changes, three times, or
    # in the bottleneck's wider first stage, too.
    assert convolutions == {10: 9 + 3, 18: 17 + 3, 34: 33 + 3, 50: 49 + 4}


def test_deep_supervision_gives_the_outputs_of_coarser_levels_in_training_only() -> None:
    network = DynUNet(filters=(4, 8, 8, 8), strides=(1, 2, 2, 2), deep_supervision=2).build(
        1, 2, (16, 16, 16)
    )
    x = torch.randn(1, 1, 16, 16, 16)
    assert network.train()(x).shape == (1, 3, 2, 16, 16, 16)
    assert network.eval()(x).shape == (1, 2, 16, 16, 16)
