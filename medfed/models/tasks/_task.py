"""What every task is: a frozen record that makes the LightningModule which learns it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from medfed.errors import StudyError
from medfed.registry import Kind, kind_of, kinds

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
    from torch import nn

    from medfed.models.losses import Loss
    from medfed.models.optimisers import Optimiser
    from medfed.models.schedules import Schedule

Needs = Literal["segment", "classify", "table", "survival"]


class Task(Kind, frozen=True):
    """What is learned: loss, validation scores and what a prediction is."""

    folder: ClassVar[str] = "tasks"

    # What each batch must hold; a network and a loss say which of these they serve.
    needs: ClassVar[Needs]

    @property
    def outputs(self) -> int:
        """How many outputs the network must have."""
        raise NotImplementedError

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the numbers that its module logs in validation: they leave a hospital,
        and no others do.
        """
        return ()

    def module(
        self,
        network: nn.Module,
        *,
        optimiser: Optimiser,
        schedule: Schedule,
        epochs: int,
        patch: tuple[int, ...] | None = None,
        site: str = "",
    ) -> LightningModule:
        """Return the LightningModule that holds and trains `network`, and has no other tensors.

        `epochs` are those of the whole run, over all rounds. `patch` is the size in voxels that the network
        was built for; tasks that see whole images or tables don't use it. `site` is the hospital that it will
        train in, for tasks that treat hospitals differently.
        """
        raise NotImplementedError


def check_loss(task: Task, loss: Loss) -> None:
    """Check that a loss serves the task.

    Raises:
        StudyError: naming the losses that do.
    """
    if task.needs not in loss.serves:
        suited = ", ".join(name for name, kind in kinds("losses").items() if task.needs in _serves(kind))
        raise StudyError(
            f"task '{kind_of(task)}': loss '{kind_of(loss)}' is for {' and '.join(loss.serves)}; "
            f"take one of {suited}"
        )


def _serves(kind: type[Kind]) -> tuple[str, ...]:
    return getattr(kind, "serves", ())


def check_classes(task: Task, classes: tuple[str, ...]) -> None:
    """Check that there are two classes or more, each with a name of its own.

    Raises:
        StudyError: saying which name comes twice, or that there are too few.
    """
    if len(classes) < 2:
        raise StudyError(
            f"task '{kind_of(task)}': classes has {len(classes)} names, at least 2 are needed, "
            f"the background or the healthy first"
        )
    for name in classes:
        if not name or classes.count(name) > 1:
            raise StudyError(
                f"task '{kind_of(task)}': classes: '{name}' is empty or there twice; each needs its own name"
            )
