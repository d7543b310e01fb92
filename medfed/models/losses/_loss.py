"""What every loss is: a frozen record of its settings that builds a function of logits and target."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from medfed.errors import StudyError
from medfed.registry import Kind, kind_of

if TYPE_CHECKING:
    from torch import Tensor, nn

# logits and target -> the loss, a tensor without axes.
Criterion = Callable[["Tensor", "Tensor"], "Tensor"]

Serves = Literal["segment", "classify", "table", "survival"]


class Loss(Kind, frozen=True):
    """What training makes small.

    Logits are (B, K, ...). The target is (B, 1, X, Y, Z) of class numbers for segmentation, (B,) of class
    numbers for images and tables, and (B, 2) of time and event (1 or 0) for survival.
    """

    folder: ClassVar[str] = "losses"

    # Which tasks can use it, in the words of `Task.needs`.
    serves: ClassVar[tuple[Serves, ...]] = ()

    def outputs(self, classes: int) -> int:
        """Return how many outputs the network needs: one a class, unless the loss says otherwise."""
        return classes

    def build(self, classes: int) -> Criterion:
        """Return the function; it can be pickled and holds no tensor that a state_dict would save.

        Raises:
            StudyError: if the settings don't fit so many classes.
        """
        raise NotImplementedError


def check_weights(loss: Loss, weights: tuple[float, ...] | None, classes: int) -> None:
    """Check that there is one weight for each class, none negative, not all zero.

    Raises:
        StudyError: saying how many there are.
    """
    if weights is None:
        return
    if len(weights) != classes:
        raise StudyError(
            f"loss '{kind_of(loss)}': {len(weights)} weights for {classes} classes; give one a class, in the "
            f"order of the task's classes"
        )
    if min(weights) < 0 or sum(weights) <= 0:
        raise StudyError(f"loss '{kind_of(loss)}': weights must not be negative and not all be 0")


def apply_module(module: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    """Return what a MONAI loss says; bound by `functools.partial`, Lightning doesn't register the module."""
    return module(logits, target)


def class_numbers(target: Tensor) -> Tensor:
    """Return a segmentation target without its channel axis, or another target as it is, as int64."""
    return (target.squeeze(1) if target.ndim > 2 else target).long()
