"""Generalised cross entropy: between cross entropy, which fits wrong labels, and the mean absolute error.

Zhang, Sabuncu: Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels, NeurIPS
2018, arXiv:1805.07836, equation 6: (1 - p^q) / q, p the probability of the labelled class. Departure: the
paper's truncated form, which drops examples of small p, is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.losses._loss import Loss, class_numbers

if TYPE_CHECKING:
    from torch import Tensor


class GeneralisedCrossEntropy(Loss, tag="generalised_cross_entropy", frozen=True):
    """Generalised cross entropy, for data with some wrong labels.

    `q` near 0 is cross entropy, 1 the mean absolute error: a larger q learns less from wrong labels, and more
    slowly from right ones. `weights` has one weight per class; the mean is then weighted.
    """

    serves = ("segment", "classify", "table")

    q: Annotated[float, Meta(gt=0, le=1)] = 0.7
    weights: tuple[float, ...] | None = None

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        import torch

        numbers = class_numbers(target)
        chosen = logits.log_softmax(dim=1).gather(1, numbers.unsqueeze(1)).squeeze(1)
        # 1 - p^q as -expm1(q log p): exact for p near 1, and without the infinite slope of p^q at p = 0.
        each = -torch.expm1(self.q * chosen) / self.q
        if self.weights is None:
            return each.mean()
        by_class = logits.new_tensor(self.weights)[numbers]
        return (each * by_class).sum() / by_class.sum()
