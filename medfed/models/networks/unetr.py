"""U-Net with a vision transformer as encoder.

Hatamizadeh et al.: UNETR, WACV 2022, arXiv:2103.10504.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.networks._network import Definition, Norm, SpatialNetwork, build_of_monai, monai_norm

if TYPE_CHECKING:
    from torch import nn

# The side length of a token in voxels, which MONAI's decoder assumes.
_TOKEN = 16


class UNETR(SpatialNetwork, tag="unetr", frozen=True):
    """U-Net with a vision transformer of 12 layers as encoder; built for one patch size."""

    serves = ("segment",)
    head = "out"

    features: Annotated[int, Meta(ge=1)] = 16
    hidden: Annotated[int, Meta(ge=1)] = 768
    mlp: Annotated[int, Meta(ge=1)] = 3072
    heads: Annotated[int, Meta(ge=1)] = 12
    norm: Norm = "instance"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def check_size(self, size: tuple[int, ...] | None) -> None:
        self.check_sides(self.require_size(size), _TOKEN)
        self.check_heads(self.hidden, self.heads)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        return build_of_monai(self.definition(inputs, outputs, size))

    def definition(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> Definition:
        return Definition(
            "UNETR",
            {
                "in_channels": inputs,
                "out_channels": outputs,
                "img_size": self.require_size(size),
                "feature_size": self.features,
                "hidden_size": self.hidden,
                "mlp_dim": self.mlp,
                "num_heads": self.heads,
                "norm_name": monai_norm(self.norm, (self.features,)),
                "dropout_rate": self.dropout,
                "spatial_dims": self.dims,
            },
        )
