"""Residual network with squeeze and excitation, for whole images.

Hu, Shen, Sun: Squeeze-and-excitation networks, CVPR 2018, arXiv:1709.01507.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.networks._network import Norm, SpatialNetwork, replace_batch_norms

if TYPE_CHECKING:
    from torch import nn

_SHRINKS_BY = 2**5


class SENet(SpatialNetwork, tag="senet", frozen=True):
    """Residual network with squeeze and excitation; the default is SE-ResNet-50.

    `layers` are the numbers of blocks of the four stages: 3, 4, 6, 3 make 50 layers, 3, 4, 23, 3 make 101.
    """

    serves = ("classify", "multilabel")
    head = "last_linear"

    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    reduction: Annotated[int, Meta(ge=1)] = 16
    norm: Norm = "batch"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def check_size(self, size: tuple[int, ...] | None) -> None:
        self.check_min_side(size, _SHRINKS_BY)
        self.check_deepest_level(size, self.norm, _SHRINKS_BY)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        from monai.networks.nets import SENet as MonaiSENet

        network = MonaiSENet(
            spatial_dims=self.dims,
            in_channels=inputs,
            block="se_resnet_bottleneck",
            layers=self.layers,
            groups=1,
            reduction=self.reduction,
            dropout_prob=self.dropout or None,
            inplanes=64,
            downsample_kernel_size=1,
            input_3x3=False,
            num_classes=outputs,
        )
        return replace_batch_norms(network, self.norm)
