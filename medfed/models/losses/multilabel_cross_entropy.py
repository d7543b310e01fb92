"""Binary cross entropy of several findings per image, over the findings that were labelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medfed.errors import StudyError
from medfed.models.losses._loss import Criterion, Loss, check_weights

if TYPE_CHECKING:
    from torch import Tensor


class MultilabelCrossEntropy(Loss, tag="multilabel_cross_entropy", frozen=True):
    """Binary cross entropy, one sigmoid per finding, averaged over the labelled findings of a batch.

    `weights` has one weight per finding; the mean is then weighted, too. `positive` has, for each finding,
    the weight of the images that show it relative to those that do not, as torch's `pos_weight`. A finding
    that was not labelled in an image (NaN) adds nothing; a batch without any labelled finding has loss 0.
    """

    serves = ("multilabel",)

    weights: tuple[float, ...] | None = None
    positive: tuple[float, ...] | None = None

    def build(self, classes: int) -> Criterion:
        check_weights(self, self.weights, classes)
        if self.positive is not None and len(self.positive) != classes:
            raise StudyError(
                f"loss 'multilabel_cross_entropy': positive has {len(self.positive)} weights for {classes} "
                "findings; give one per finding, in the order of the task's classes"
            )
        if self.positive is not None and min(self.positive) <= 0:
            raise StudyError("loss 'multilabel_cross_entropy': each weight in positive must be above 0")
        return self.value

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, K) and targets (B, K) of 0, 1, or NaN where not labelled."""
        from torch.nn import functional

        labelled = ~target.isnan()
        positive = None if self.positive is None else logits.new_tensor(self.positive)
        # NaN times 0 is NaN, so what was not labelled is replaced before, not masked after.
        truth = target.nan_to_num(0.0).to(logits.dtype)
        each = functional.binary_cross_entropy_with_logits(
            logits, truth, pos_weight=positive, reduction="none"
        )
        weight = labelled.to(logits.dtype)
        if self.weights is not None:
            weight = weight * logits.new_tensor(self.weights)
        total = weight.sum()
        return (each * weight).sum() / total.where(total > 0, total.new_ones(()))
