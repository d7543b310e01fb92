"""U-Net with residual units.

Ronneberger, Fischer, Brox: U-Net, MICCAI 2015, arXiv:1505.04597; the residual units are Kerfoot et al.,
STACOM 2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.errors import StudyError
from medfed.models.networks._network import Definition, Norm, SpatialNetwork, build_of_monai, monai_norm

if TYPE_CHECKING:
    from torch import nn


class UNet(SpatialNetwork, tag="unet", frozen=True):
    """U-Net with residual units, a good default for segmentation.

    `channels` are the features of each level from the finest to the coarsest; each further level halves the
    patch.
    """

    serves = ("segment",)
    head = "model.2"

    channels: Annotated[tuple[int, ...], Meta(min_length=2)] = (16, 32, 64, 128, 256)
    residual_units: Annotated[int, Meta(ge=0)] = 2
    norm: Norm = "instance"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def check_size(self, size: tuple[int, ...] | None) -> None:
        if len(self.channels) < 2:
            raise StudyError(
                f"network 'unet': {len(self.channels)} channels, a U-Net needs at least 2 levels"
            )
        halvings = len(self.channels) - 1
        self.check_sides(size, 2**halvings)
        self.check_deepest_level(size, self.norm, 2**halvings)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        return build_of_monai(self.definition(inputs, outputs, size))

    def definition(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> Definition:
        return Definition(
            "UNet",
            {
                "spatial_dims": self.dims,
                "in_channels": inputs,
                "out_channels": outputs,
                "channels": self.channels,
                "strides": (2,) * (len(self.channels) - 1),
                "num_res_units": self.residual_units,
                # The topmost transposed convolution has as many features as outputs, and its own norm.
                "norm": monai_norm(self.norm, (*self.channels, outputs)),
                "dropout": self.dropout,
            },
        )
