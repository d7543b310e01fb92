"""EfficientNet for whole images.

Tan and Le: EfficientNet, ICML 2019, arXiv:1905.11946.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from medfed.models.networks._network import Norm, SpatialNetwork, replace_batch_norms

if TYPE_CHECKING:
    from torch import nn

_SHRINKS_BY = 2**5


class EfficientNet(SpatialNetwork, tag="efficientnet", frozen=True):
    """EfficientNet for whole images, with few weights for its accuracy; `b0` is the smallest."""

    serves = ("classify", "multilabel")
    head = "_fc"

    version: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"] = "b0"
    norm: Norm = "batch"

    def check_size(self, size: tuple[int, ...] | None) -> None:
        self.check_min_side(size, _SHRINKS_BY)
        self.check_deepest_level(size, self.norm, _SHRINKS_BY)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        from monai.networks.nets import EfficientNetBN

        network = EfficientNetBN(
            model_name=f"efficientnet-{self.version}",
            # MONAI's default downloads weights from the internet.
            pretrained=False,
            spatial_dims=self.dims,
            in_channels=inputs,
            num_classes=outputs,
        )
        return replace_batch_norms(network, self.norm)
