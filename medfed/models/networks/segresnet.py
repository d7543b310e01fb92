"""Residual encoder and decoder for segmentation.

Myronenko: 3D MRI brain tumor segmentation using autoencoder regularization, BrainLes 2018, arXiv:1810.11654.
Departure: without the autoencoder branch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.errors import StudyError
from medfed.models.networks._network import Definition, Norm, SpatialNetwork, build_of_monai, monai_norm

if TYPE_CHECKING:
    from torch import nn


class SegResNet(SpatialNetwork, tag="segresnet", frozen=True):
    """Residual encoder and decoder, light on memory.

    `blocks_down` and `blocks_up` are the numbers of residual blocks per level; the decoder
    has one level less.
    """

    serves = ("segment",)
    head = "conv_final"

    filters: Annotated[int, Meta(ge=1)] = 16
    blocks_down: Annotated[tuple[int, ...], Meta(min_length=2)] = (1, 2, 2, 4)
    blocks_up: Annotated[tuple[int, ...], Meta(min_length=1)] = (1, 1, 1)
    # Group norm as in the paper, unlike the other segmentation networks' instance norm.
    norm: Norm = "group"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def check_size(self, size: tuple[int, ...] | None) -> None:
        halvings = len(self.blocks_down) - 1
        if halvings < 1 or len(self.blocks_up) != halvings:
            raise StudyError(
                f"network 'segresnet': blocks_down has {len(self.blocks_down)} levels and blocks_up "
                f"{len(self.blocks_up)}; blocks_up needs one level less than blocks_down"
            )
        self.check_sides(size, 2**halvings)
        self.check_deepest_level(size, self.norm, 2**halvings)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        return build_of_monai(self.definition(inputs, outputs, size))

    def definition(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> Definition:
        return Definition(
            "SegResNet",
            {
                "spatial_dims": self.dims,
                "init_filters": self.filters,
                "in_channels": inputs,
                "out_channels": outputs,
                "dropout_prob": self.dropout or None,
                "norm": monai_norm(self.norm, (self.filters,)),
                "blocks_down": self.blocks_down,
                "blocks_up": self.blocks_up,
            },
        )
