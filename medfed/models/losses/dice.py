"""Soft Dice: Milletari, Navab, Ahmadi: V-Net, 3DV 2016, arXiv:1606.04797.

Departure: the denominator has no squares.
"""

from __future__ import annotations

from medfed.models.losses._loss import Criterion, Loss, module_criterion


class Dice(Loss, tag="dice", frozen=True):
    """One minus the mean soft Dice of the foreground classes, or of all classes with `background`.

    `batch` sums over the whole batch before dividing, so that a patch without a lesion is not
    scored on its own.
    """

    serves = ("segment",)

    background: bool = False
    batch: bool = True

    def build(self, classes: int) -> Criterion:
        from monai.losses import DiceLoss

        return module_criterion(
            DiceLoss(include_background=self.background, to_onehot_y=True, softmax=True, batch=self.batch)
        )
