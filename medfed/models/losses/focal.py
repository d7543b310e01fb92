"""Focal loss: Lin, Goyal, Girshick, He, Dollár, ICCV 2017, arXiv:1708.02002, over softmax.

MONAI's can use softmax, too, but also averages over the classes; with gamma 0 this loss is cross entropy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.losses._loss import Loss, class_numbers

if TYPE_CHECKING:
    from torch import Tensor


class Focal(Loss, tag="focal", frozen=True):
    """Cross entropy with less weight on what is right already: times (1 - probability) to the power `gamma`.

    `weights` has one weight per class; unlike in `cross_entropy`, the mean counts all voxels or images
    equally, as in the paper.
    """

    serves = ("segment", "classify", "table")

    gamma: Annotated[float, Meta(ge=0)] = 2.0
    weights: tuple[float, ...] | None = None

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over all examples of -w (1 - p)^gamma log p, p that of the right class."""
        import torch

        numbers = class_numbers(target)
        log_p = logits.log_softmax(dim=1).gather(1, numbers.unsqueeze(1)).squeeze(1)
        # 1 - p by expm1, which is exact for p near 1; a power below 1 has no gradient at 0, hence the clamp.
        wrong = (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny)
        loss = -(wrong**self.gamma) * log_p
        if self.weights is not None:
            loss = loss * logits.new_tensor(self.weights)[numbers]
        return loss.mean()
