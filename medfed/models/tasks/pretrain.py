"""Self-supervised pretraining: hidden blocks of images are reconstructed, without any label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from msgspec import Meta

from medfed.models._needs import Needs
from medfed.models.tasks._task import Task
from medfed.models.tasks._training import Training

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
    from torch import nn


class Pretrain(Task, tag="pretrain", frozen=True):
    """Pretraining of a segmentation network on images alone: it reconstructs what is hidden of them.

    Of each training patch the share `masked` of its blocks is hidden, drawn anew at each step; a block has
    `block` voxels of the study's grid per side. Hidden voxels get the mean of the visible ones, and the loss
    (`error`: l1 the absolute, l2 the squared difference) is over the hidden voxels only. No label is read:
    cases with and without one train alike. A segmentation with the same `network` starts from the result by
    `start: {path: RUN, anew: [head]}`.

    Hiding blocks and a loss on them alone are SimMIM's (Xie, CVPR 2022, arXiv:2111.09886), with l1 and 0.6
    of the blocks. Restoring parts of volumes by a U-Net is Models Genesis' (Zhou, MedIA 2021,
    arXiv:2004.07882); Wald (CVPR 2025, arXiv:2410.23132) hides blocks from a U-Net of nnU-Net's with l2. It
    departs from these: there is no mask token, as a learnt one would be one more tensor to send, and no
    sparse convolution.
    """

    needs: ClassVar[Needs] = "image"
    metrics: ClassVar[tuple[str, ...]] = ("reconstruction",)
    network_needs: ClassVar[Needs | None] = "segment"
    described: ClassVar[str] = "hidden parts of images are reconstructed; no label is needed or read"

    masked: Annotated[float, Meta(gt=0, lt=1)] = 0.6
    block: Annotated[int, Meta(ge=1)] = 8
    error: Literal["l1", "l2"] = "l2"

    @property
    def outputs(self) -> int:
        return 1

    def outputs_of(self, inputs: int) -> int:
        return inputs

    def image_problems(self, patch: tuple[int, ...] | None, balance: str) -> Iterator[str]:
        if patch is not None and max(patch) <= self.block:
            size = " x ".join(map(str, patch))
            yield (
                f"task.block: a block of {self.block} voxels per side covers a whole patch of {size} "
                "(data.patch); take a smaller block, or a larger patch"
            )
        if balance == "classes":
            yield "data.balance: classes are those of labels, and task 'pretrain' reads none; leave it out"

    @property
    def scores(self) -> tuple[str, ...]:
        return ("val/loss", "val/reconstruction_error")

    def module(self, network: nn.Module, training: Training) -> LightningModule:
        from medfed.models.tasks._reconstruction import Reconstruction

        return Reconstruction(self, network, training)
