"""Vision transformer for whole images.

Dosovitskiy et al.: An image is worth 16x16 words, ICLR 2021, arXiv:2010.11929.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.networks._network import SpatialNetwork, drop_unused_norms

if TYPE_CHECKING:
    from torch import nn


class ViT(SpatialNetwork, tag="vit", frozen=True):
    """Vision transformer for whole images, built for one image size and without batch statistics.

    `token` is the side length in voxels of the blocks that an image is divided into.
    """

    serves = ("classify", "multilabel")
    head = "vit.classification_head"

    token: Annotated[int, Meta(ge=1)] = 16
    hidden: Annotated[int, Meta(ge=1)] = 384
    mlp: Annotated[int, Meta(ge=1)] = 1536
    layers: Annotated[int, Meta(ge=1)] = 6
    heads: Annotated[int, Meta(ge=1)] = 6
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def check_size(self, size: tuple[int, ...] | None) -> None:
        self.check_sides(self.require_size(size), self.token)
        self.check_heads(self.hidden, self.heads)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        size = self.require_size(size)
        self.check_size(size)
        from monai.networks.nets import ViT as MonaiViT

        from medfed.models.networks._vit_logits import ViTLogits

        vit = MonaiViT(
            in_channels=inputs,
            img_size=size,
            patch_size=(self.token,) * self.dims,
            hidden_size=self.hidden,
            mlp_dim=self.mlp,
            num_layers=self.layers,
            num_heads=self.heads,
            classification=True,
            num_classes=outputs,
            dropout_rate=self.dropout,
            spatial_dims=self.dims,
            # MONAI's default applies tanh to the logits; with two classes, probabilities then stay in
            # 0.12 to 0.88.
            post_activation=None,
        )
        return ViTLogits(drop_unused_norms(vit))
