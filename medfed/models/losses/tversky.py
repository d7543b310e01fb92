"""Tversky loss: Salehi, Erdogmus, Gholipour, MLMI 2017, arXiv:1706.05721."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from medfed.models.losses._loss import Criterion, Loss, module_criterion


class Tversky(Loss, tag="tversky", frozen=True):
    """Soft Dice with separate weights of false positives and missed voxels; with 0.5 each it is Dice.

    More weight on `missed` finds more small lesions, at the cost of more false positives.
    """

    serves = ("segment",)

    background: bool = False
    batch: bool = True
    false_positives: Annotated[float, Meta(ge=0)] = 0.3
    missed: Annotated[float, Meta(ge=0)] = 0.7

    def build(self, classes: int) -> Criterion:
        from monai.losses import TverskyLoss

        return module_criterion(
            TverskyLoss(
                include_background=self.background,
                to_onehot_y=True,
                softmax=True,
                batch=self.batch,
                alpha=self.false_positives,
                beta=self.missed,
            )
        )
