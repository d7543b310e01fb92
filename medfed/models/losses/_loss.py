"""The base of all losses: a frozen record of settings that builds a function of logits and target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from medfed.errors import StudyError
from medfed.models._needs import Needs
from medfed.registry import Kind, kind_of

if TYPE_CHECKING:
    from torch import Tensor, nn

# A function of logits and target that returns the loss, a tensor without axes.
Criterion = Callable[["Tensor", "Tensor"], "Tensor"]


class Loss(Kind, frozen=True):
    """What training minimises.

    Logits are (B, K, ...). The target is (B, 1, X, Y, Z) of class numbers for segmentation, (B,) of class
    numbers for images and tables, (B, K) of 1, 0 or NaN (not labelled) for several findings per image, and
    (B, 2) of time and event (1 or 0) for survival.
    """

    folder: ClassVar[str] = "losses"

    # The `Task.needs` of the tasks that can use it.
    serves: ClassVar[tuple[Needs, ...]] = ()

    def outputs(self, classes: int) -> int:
        """Return how many outputs the network needs: one per class, unless the loss overrides it."""
        return classes

    def build(self, classes: int) -> Criterion:
        """Return `value`, or another function that can be pickled and holds no tensor of a state_dict.

        Raises:
            StudyError: if the settings don't fit this number of classes.
        """
        self.outputs(classes)
        check_weights(self, getattr(self, "weights", None), classes)
        return self.value

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a tensor without axes."""
        raise NotImplementedError

    @property
    def grows_trees(self) -> bool:
        """Whether `derivatives` says what trees are grown from."""
        return False

    def derivatives(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the sum of all rows' losses by each score, first and second, both (n, K).

        Scores are (n, K) float64; of two classes there is one score, the log odds of the second.

        Raises:
            NotImplementedError: if not `grows_trees`.
        """
        raise NotImplementedError


def class_derivatives(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives of cross entropy by scores (n, K), of class numbers (n,); see `derivatives`."""
    import torch

    if scores.shape[1] == 1:
        share, own = scores.sigmoid(), target[:, None] == 1
    else:
        share, own = (
            scores.softmax(dim=1),
            target[:, None] == torch.arange(scores.shape[1], device=target.device),
        )
    return share - own.to(share.dtype), share * (1 - share)


def check_weights(loss: Loss, weights: tuple[float, ...] | None, classes: int) -> None:
    """Check that there is one weight for each class, none negative, not all zero.

    Raises:
        StudyError: with the number of weights.
    """
    if weights is None:
        return
    if len(weights) != classes:
        raise StudyError(
            f"loss '{kind_of(loss)}': {len(weights)} weights for {classes} classes; give one per class, in "
            f"the order of the task's classes"
        )
    if min(weights) < 0 or sum(weights) <= 0:
        raise StudyError(f"loss '{kind_of(loss)}': weights must not be negative, and not all 0")


def module_criterion(module: nn.Module) -> Criterion:
    """Return a MONAI loss as a function, so that Lightning doesn't register the module."""
    return partial(_apply, module)


def _apply(module: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = module(logits, target)
    return loss


def class_numbers(target: Tensor) -> Tensor:
    """Return a target as int64, a segmentation target without its channel axis."""
    return (target.squeeze(1) if target.ndim > 2 else target).long()
