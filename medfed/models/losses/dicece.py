"""Dice plus cross entropy, the loss of nnU-Net (Isensee et al., Nature Methods 2021)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from medfed.models.losses._loss import Criterion, Loss, module_criterion


class DiceCE(Loss, tag="dicece", frozen=True):
    """Dice plus cross entropy: the usual choice for segmentation.

    `batch` sums over the whole batch before dividing, so that a patch without a lesion is not
    scored on its own.
    """

    serves = ("segment",)

    background: bool = False
    batch: bool = True
    dice: Annotated[float, Meta(ge=0)] = 1.0
    cross_entropy: Annotated[float, Meta(ge=0)] = 1.0
    smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def build(self, classes: int) -> Criterion:
        from monai.losses import DiceCELoss

        return module_criterion(
            DiceCELoss(
                include_background=self.background,
                to_onehot_y=True,
                softmax=True,
                batch=self.batch,
                lambda_dice=self.dice,
                lambda_ce=self.cross_entropy,
                label_smoothing=self.smoothing,
            )
        )
