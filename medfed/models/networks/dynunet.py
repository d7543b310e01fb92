"""The U-Net of nnU-Net, with free kernels and strides at each level.

Isensee et al.: nnU-Net, Nature Methods 2021, arXiv:1904.08128.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, Literal, Self

import msgspec
from msgspec import Meta

from medfed.errors import StudyError
from medfed.models.networks._levels import plan_levels
from medfed.models.networks._network import Norm, SpatialNetwork, format_size, monai_norm

if TYPE_CHECKING:
    from torch import nn

# One number for all axes, or one per axis: [1, 2, 2] keeps thick slices as they are.
Sides = int | tuple[int, ...]


class DynUNet(SpatialNetwork, tag="dynunet", frozen=True):
    """The U-Net of nnU-Net: kernels and strides of each level can differ by axis, which thick slices need.

    `filters`, `kernels` and `strides` have one entry per level, at least 3. `kernels` may be omitted (3
    everywhere). `strides: spacing` plans both as nnU-Net does, from data.spacing_mm and data.patch: an axis
    whose voxels are at least twice the finest's is not pooled, and has kernels of 1, until the others are as
    coarse. `deep_supervision` is the number of coarser levels whose outputs are trained, too, each with
    half the weight of the level above.
    """

    serves = ("segment",)
    head = "output_block"

    filters: Annotated[tuple[int, ...], Meta(min_length=3)] = (32, 64, 128, 256, 320)
    strides: Annotated[tuple[Sides, ...], Meta(min_length=3)] | Literal["spacing"] = (1, 2, 2, 2, 2)
    kernels: tuple[Sides, ...] | None = None
    norm: Norm = "instance"
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    residual: bool = False
    deep_supervision: Annotated[int, Meta(ge=0)] = 0

    def fitted(self, spacing_mm: tuple[float, ...] | None, patch: tuple[int, ...] | None) -> Self:
        if self.strides != "spacing":
            return self
        if self.kernels is not None:
            raise StudyError("network 'dynunet': strides: spacing plans the kernels, too; leave kernels out")
        if spacing_mm is None or patch is None or not len(spacing_mm) == len(patch) == self.dims:
            raise StudyError(
                "network 'dynunet': strides: spacing needs data.spacing_mm in mm and data.patch, each with "
                f"{self.dims} numbers; give them, or one stride per level"
            )
        levels = plan_levels(spacing_mm, patch, len(self.filters))
        if len(levels.strides) < len(self.filters):
            raise StudyError(
                f"network 'dynunet': a patch of {format_size(patch)} voxels bears {len(levels.strides)} "
                f"levels, filters has {len(self.filters)} entries; give as many, at least 3, or a larger "
                "patch"
            )
        return msgspec.structs.replace(self, strides=levels.strides, kernels=levels.kernels)

    @property
    def _kernels(self) -> tuple[Sides, ...]:
        return self.kernels or (3,) * len(self.strides)

    @property
    def _strides(self) -> list[tuple[int, ...]]:
        if self.strides == "spacing":
            raise StudyError(
                "network 'dynunet': strides: spacing follows from the data; `fitted` gives the network for a "
                "voxel size and a patch"
            )
        return [self._sides(stride) for stride in self.strides]

    def check_size(self, size: tuple[int, ...] | None) -> None:
        strides = self._strides
        self._check_levels(strides, self._kernels)
        shrinks_by = tuple(prod(axis) for axis in zip(*strides, strict=True))
        self.check_sides(size, shrinks_by)
        self.check_deepest_level(size, self.norm, shrinks_by)

    def build(self, inputs: int, outputs: int, size: tuple[int, ...] | None = None) -> nn.Module:
        self.check_size(size)
        kernels, strides = self._kernels, self._strides
        from monai.networks.nets import DynUNet as MonaiDynUNet

        network = MonaiDynUNet(
            spatial_dims=self.dims,
            in_channels=inputs,
            out_channels=outputs,
            kernel_size=[self._sides(kernel) for kernel in kernels],
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=self.filters,
            dropout=self.dropout or None,
            norm_name=monai_norm(self.norm, self.filters),
            deep_supervision=self.deep_supervision > 0,
            deep_supr_num=max(self.deep_supervision, 1),
            res_block=self.residual,
        )
        # MONAI registers every level twice, here and inside skip_layers, which forward uses. Each tensor
        # would have two names and be sent twice.
        for name in ("input_block", "downsamples", "bottleneck", "upsamples"):
            delattr(network, name)
        if self.deep_supervision:
            del network.deep_supervision_heads
        return network

    def _sides(self, value: Sides) -> tuple[int, ...]:
        return (value,) * self.dims if isinstance(value, int) else tuple(value)

    def _check_levels(self, strides: Sequence[Sides], kernels: Sequence[Sides]) -> None:
        levels = len(strides)
        if levels < 3 or len(self.filters) != levels or len(kernels) != levels:
            raise StudyError(
                f"network 'dynunet': filters, strides and kernels have {len(self.filters)}, {levels} and "
                f"{len(kernels)} entries; each needs one per level, and at least 3"
            )
        for name, values in (("strides", strides), ("kernels", kernels)):
            if any(len(self._sides(value)) != self.dims for value in values):
                raise StudyError(
                    f"network 'dynunet': {name}: an entry is one number, or {self.dims} numbers, one per axis"
                )
        if self.deep_supervision > levels - 2:
            raise StudyError(
                f"network 'dynunet': deep_supervision: {self.deep_supervision}; of {levels} levels at "
                f"most {levels - 2} can have their own output"
            )
