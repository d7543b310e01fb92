"""Densely connected network for whole images.

Huang, Liu, van der Maaten, Weinberger: Densely connected convolutional networks, CVPR 2017, arXiv:1608.06993.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.networks._network import Norm, SpatialNetwork, replace_batch_norms

if TYPE_CHECKING:
    from torch import nn


class DenseNet121(SpatialNetwork, tag="densenet121", frozen=True):
    """Densely connected network of 121 layers for whole images.

    `blocks` are the numbers of layers of the dense blocks; the default makes 121 layers.
    """

    serves = ("classify", "multilabel")
    head = "class_layers.out"

    features: Annotated[int, Meta(ge=1)] = 64
    growth: Annotated[int, Meta(ge=1)] = 32
    blocks: Annotated[tuple[int, ...], Meta(min_length=1)] = (6, 12, 24, 16)
    norm: Norm = "batch"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def check_size(self, size: tuple[int, ...] | None) -> None:
        # The stem divides by 4 and each transition between blocks by 2.
        shrinks_by = 4 * 2 ** (len(self.blocks) - 1)
        self.check_min_side(size, shrinks_by)
        self.check_deepest_level(size, self.norm, shrinks_by)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        from monai.networks.nets import DenseNet

        network = DenseNet(
            spatial_dims=self.dims,
            in_channels=inputs,
            out_channels=outputs,
            init_features=self.features,
            growth_rate=self.growth,
            block_config=self.blocks,
            dropout_prob=self.dropout,
        )
        return replace_batch_norms(network, self.norm)
