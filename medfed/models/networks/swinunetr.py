"""U-Net with a Swin transformer as encoder.

Hatamizadeh et al.: Swin UNETR, BrainLes 2021, arXiv:2201.01266.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from medfed.errors import StudyError
from medfed.models.networks._network import Definition, Norm, SpatialNetwork, build_of_monai, monai_norm

if TYPE_CHECKING:
    from torch import nn

# The embedding and each of the four stages halve a patch.
_SHRINKS_BY = 2**5


class SwinUNETR(SpatialNetwork, tag="swinunetr", frozen=True):
    """U-Net with a Swin transformer as encoder, for studies with many cases and a GPU.

    `checkpointing` recomputes activations in the backward pass instead of storing them.
    """

    serves = ("segment",)
    head = "out"

    features: Annotated[int, Meta(ge=12, multiple_of=12)] = 24
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window: Annotated[int, Meta(ge=2)] = 7
    norm: Norm = "instance"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    version: Literal[1, 2] = 1
    checkpointing: bool = False

    def check_size(self, size: tuple[int, ...] | None) -> None:
        self.check_sides(size, _SHRINKS_BY)
        self.check_deepest_level(size, self.norm, _SHRINKS_BY)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        for stage, heads in enumerate(self.heads):
            if self.features % 12 or (self.features * 2**stage) % heads:
                raise StudyError(
                    f"network 'swinunetr': features: {self.features} must be a multiple of 12, and the "
                    f"{self.features * 2**stage} features of stage {stage + 1} a multiple of its {heads} "
                    "heads"
                )
        return build_of_monai(self.definition(inputs, outputs, size))

    def definition(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> Definition:
        return Definition(
            "SwinUNETR",
            {
                "in_channels": inputs,
                "out_channels": outputs,
                "depths": self.depths,
                "num_heads": self.heads,
                "window_size": self.window,
                "norm_name": monai_norm(self.norm, (self.features,)),
                "feature_size": self.features,
                "drop_rate": self.dropout,
                "use_checkpoint": self.checkpointing,
                "spatial_dims": self.dims,
                "use_v2": self.version == 2,
            },
        )
