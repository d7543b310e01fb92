"""Soft Dice: Milletari, Navab, Ahmadi: V-Net, 3DV 2016, arXiv:1606.04797.

Departure: the denominator has no squares.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from medfed.models._needs import Needs
from medfed.models.losses._loss import Criterion, Loss, apply_module


class Dice(Loss, tag="dice", frozen=True):
    """One minus the mean soft Dice of the foreground classes, or of all classes with `background`.

    `batch` sums over the whole batch before dividing, so that a patch without a lesion is not
    scored on its own.
    """

    serves: ClassVar[tuple[Needs, ...]] = ("segment",)

    background: bool = False
    batch: bool = True

    def build(self, classes: int) -> Criterion:
        from monai.losses import DiceLoss

        return partial(
            apply_module,
            DiceLoss(include_background=self.background, to_onehot_y=True, softmax=True, batch=self.batch),
        )
