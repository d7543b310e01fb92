"""Cross entropy over softmax, with class weights and label smoothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.losses._loss import Loss, class_derivatives, class_numbers

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

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        from torch.nn import functional

        weight = None if self.weights is None else logits.new_tensor(self.weights)
        return functional.cross_entropy(
            logits, class_numbers(target), weight=weight, label_smoothing=self.smoothing
        )

    @property
    def grows_trees(self) -> bool:
        return self.weights is None and self.smoothing == 0

    def derivatives(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return class_derivatives(scores, target)
