"""Symmetric cross entropy: cross entropy, plus cross entropy with label and prediction exchanged.

Wang, Ma, Chen, Luo, Yi, Bailey: Symmetric Cross Entropy for Robust Learning with Noisy Labels, ICCV 2019,
arXiv:1908.06112, equations 7 to 10: alpha CE(q, p) + beta CE(p, q) with log 0 = A in the second. For a label
of one class the second is -A (1 - p), p the probability of that class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.losses._loss import Loss, class_numbers

if TYPE_CHECKING:
    from torch import Tensor


class SymmetricCrossEntropy(Loss, tag="symmetric_cross_entropy", frozen=True):
    """Symmetric cross entropy, for data with some wrong labels.

    `alpha` is the weight of cross entropy, which learns fast and fits wrong labels; `beta` that of
    the reversed one, which tolerates them. `log_zero` replaces log 0. The defaults are the paper's
    for small data sets.
    """

    serves = ("segment", "classify", "table")

    alpha: Annotated[float, Meta(ge=0)] = 0.1
    beta: Annotated[float, Meta(ge=0)] = 1.0
    log_zero: Annotated[float, Meta(lt=0)] = -4.0

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        from torch.nn import functional

        numbers = class_numbers(target)
        forward = functional.cross_entropy(logits, numbers)
        chosen = logits.softmax(dim=1).gather(1, numbers.unsqueeze(1))
        return self.alpha * forward + self.beta * -self.log_zero * (1 - chosen).mean()
