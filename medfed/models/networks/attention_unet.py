"""U-Net whose skip connections are gated by attention.

Oktay et al.: Attention U-Net, MIDL 2018, arXiv:1804.03999. Departure: the norm can be
chosen (MONAI's is batch norm); after the merge of a skip connection it stays MONAI's instance norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.errors import StudyError
from medfed.models.networks._network import Norm, SpatialNetwork, replace_batch_norms

if TYPE_CHECKING:
    from torch import nn


class AttentionUNet(SpatialNetwork, tag="attention_unet", frozen=True):
    """U-Net whose skip connections are gated by attention, for small structures in large images.

    `channels` are the features of each level from the finest to the coarsest.
    """

    serves = ("segment",)
    head = "model.2"

    channels: Annotated[tuple[int, ...], Meta(min_length=2)] = (16, 32, 64, 128)
    norm: Norm = "instance"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def check_size(self, size: tuple[int, ...] | None) -> None:
        if len(self.channels) < 2:
            raise StudyError("network 'attention_unet': channels has one level, at least 2 are needed")
        halvings = len(self.channels) - 1
        self.check_sides(size, 2**halvings)
        self.check_deepest_level(size, self.norm, 2**halvings)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        from monai.networks.nets import AttentionUnet as MonaiAttentionUnet

        network = MonaiAttentionUnet(
            spatial_dims=self.dims,
            in_channels=inputs,
            out_channels=outputs,
            channels=self.channels,
            strides=(2,) * (len(self.channels) - 1),
            dropout=self.dropout,
        )
        return replace_batch_norms(network, self.norm)
