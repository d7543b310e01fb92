"""Residual network for whole images.

He, Zhang, Ren, Sun: Deep Residual Learning, CVPR 2016, arXiv:1512.03385; in 3D as Hara et al., CVPR 2018,
arXiv:1711.09577. Departure: every shortcut that changes size is a convolution (option B), at every depth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from medfed.models.networks._network import Norm, SpatialNetwork, replace_batch_norms

if TYPE_CHECKING:
    from torch import nn

_BLOCKS: dict[int, tuple[str, list[int]]] = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
}


class ResNet(SpatialNetwork, tag="resnet", frozen=True):
    """Residual network for whole images, of 10 to 50 layers.

    `width` is the number of features of the first stage; each of the next three doubles it and halves the
    image.
    """

    serves = ("classify", "multilabel")
    head = "fc"

    depth: Literal[10, 18, 34, 50] = 10
    width: Annotated[int, Meta(ge=1)] = 64
    first_kernel: Annotated[int, Meta(ge=1)] = 7
    first_stride: Annotated[int, Meta(ge=1)] = 1
    max_pool: bool = True
    norm: Norm = "batch"

    def check_size(self, size: tuple[int, ...] | None) -> None:
        shrinks_by = self.first_stride * (16 if self.max_pool else 8)
        self.check_last_stride(size, shrinks_by)
        self.check_deepest_level(size, self.norm, shrinks_by)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        from monai.networks.nets import ResNet as MonaiResNet

        block, layers = _BLOCKS[self.depth]
        network = MonaiResNet(
            block=block,
            layers=layers,
            block_inplanes=[self.width * factor for factor in (1, 2, 4, 8)],
            spatial_dims=self.dims,
            n_input_channels=inputs,
            conv1_t_size=self.first_kernel,
            conv1_t_stride=self.first_stride,
            no_max_pool=not self.max_pool,
            shortcut_type="B",
            bias_downsample=False,
            num_classes=outputs,
        )
        return replace_batch_norms(network, self.norm)
