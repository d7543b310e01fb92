"""Cross entropy over softmax, with class weights and label smoothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.losses._loss import Criterion, Loss, check_weights, class_numbers

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Loss, tag="cross_entropy", frozen=True):
    """Cross entropy over softmax.

    `weights` has one weight per class; the mean is then weighted, too, as in torch. `smoothing` is the share
    of the target that is spread equally over all classes.
    """

    serves = ("segment", "classify", "table")

    weights: tuple[float, ...] | None = None
    smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def build(self, classes: int) -> Criterion:
        check_weights(self, self.weights, classes)
        return partial(_cross_entropy, weights=self.weights, smoothing=self.smoothing)


def _cross_entropy(
    logits: Tensor, target: Tensor, *, weights: tuple[float, ...] | None, smoothing: float
) -> Tensor:
    from torch.nn import functional

    weight = None if weights is None else logits.new_tensor(weights)
    return functional.cross_entropy(logits, class_numbers(target), weight=weight, label_smoothing=smoothing)
