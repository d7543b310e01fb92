"""Soft Dice plus focal loss, both over softmax.

Zhu et al.: AnatomyNet, Medical Physics 2019, arXiv:1808.05238.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.losses._loss import Criterion, Loss
from medfed.models.losses.dice import Dice
from medfed.models.losses.focal import Focal

if TYPE_CHECKING:
    from torch import Tensor


class DiceFocal(Loss, tag="dicefocal", frozen=True):
    """Soft Dice plus focal loss, for small structures.

    MONAI's loss of this name takes a softmax for Dice but one sigmoid per class for the focal part, as if
    classes could overlap; here both parts use the same probabilities.
    """

    serves = ("segment",)

    background: bool = False
    batch: bool = True
    gamma: Annotated[float, Meta(ge=0)] = 2.0
    dice: Annotated[float, Meta(ge=0)] = 1.0
    focal: Annotated[float, Meta(ge=0)] = 1.0

    def build(self, classes: int) -> Criterion:
        return partial(
            _weighted_sum,
            parts=(
                (self.dice, Dice(background=self.background, batch=self.batch).build(classes)),
                (self.focal, Focal(gamma=self.gamma).build(classes)),
            ),
        )


def _weighted_sum(logits: Tensor, target: Tensor, *, parts: tuple[tuple[float, Criterion], ...]) -> Tensor:
    (first, dice), (second, focal) = parts
    return first * dice(logits, target) + second * focal(logits, target)
