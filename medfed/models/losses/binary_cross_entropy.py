"""Cross entropy of two classes on a single output, as in plain logistic regression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.errors import StudyError
from medfed.models.losses._loss import Loss, class_derivatives

if TYPE_CHECKING:
    from torch import Tensor


class BinaryCrossEntropy(Loss, tag="binary_cross_entropy", frozen=True):
    """Cross entropy of two classes on one output, whose sigmoid is the probability of the second class.

    It has the same optima as `cross_entropy`, but another path to them: softmax over two outputs takes steps
    twice as long at the same learning rate. FLamby's Fed-Heart-Disease uses one output, so its figures need
    this loss. `positive` is the weight of the second class's examples relative to the first's.
    """

    serves = ("classify", "table")

    positive: Annotated[float, Meta(gt=0)] = 1.0

    def outputs(self, classes: int) -> int:
        if classes != 2:
            raise StudyError(
                f"loss 'binary_cross_entropy': the task has {classes} classes, this loss takes 2; "
                f"take 'cross_entropy'"
            )
        return 1

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(
            logits.squeeze(1), target.to(logits.dtype), pos_weight=logits.new_tensor(self.positive)
        )

    @property
    def grows_trees(self) -> bool:
        return self.positive == 1

    def derivatives(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return class_derivatives(scores, target)
