"""The base of all tasks: a frozen record that builds a LightningModule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from medfed.errors import StudyError
from medfed.models._needs import Needs
from medfed.models.losses import Loss
from medfed.models.losses.cross_entropy import CrossEntropy
from medfed.models.tasks._training import Training
from medfed.registry import Kind, kind_of, kinds, union

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
    from torch import Tensor, nn

    AnyLoss = Loss
else:
    AnyLoss = union("losses")


class Task(Kind, frozen=True):
    """What is learned: loss, validation scores, predictions. See `medfed.models.tasks` for the contract."""

    folder: ClassVar[str] = "tasks"

    # What each batch holds; networks and losses declare which of these they serve.
    needs: ClassVar[Needs]

    # The families of metrics that measure its predictions, for a task whose predictions are not those of its
    # `needs`.
    metrics: ClassVar[tuple[str, ...]] = ()

    # Of which tasks its network must be, if not of those with its own `needs`: a later study's, for which it
    # trains.
    network_needs: ClassVar[Needs | None] = None

    # What it does, for the page that a hospital agrees to, where its name and its classes do not say it.
    described: ClassVar[str] = ""

    @property
    def predicts(self) -> str:
        """What its module predicts: what belongs to its `needs`, or 'other' if it has metrics of its own."""
        return "other" if self.metrics else self.needs

    @property
    def outputs(self) -> int:
        """How many outputs the network must have."""
        raise NotImplementedError

    def outputs_of(self, inputs: int) -> int:
        """Return how many outputs a network of this many inputs must have, for most tasks `outputs`."""
        return self.outputs

    def image_problems(self, patch: tuple[int, ...] | None, balance: str) -> Iterator[str]:
        """Yield why a study's patches (`data.patch`, `data.balance`) do not suit the task, if they do not."""
        yield from ()

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of all numbers that its module logs in validation; no others leave a hospital."""
        return ()

    @property
    def main_score(self) -> str:
        """The score that is shown during training: the first besides the loss."""
        return next((name for name in self.scores if name != "val/loss"), "val/loss")

    def module(self, network: nn.Module, training: Training) -> LightningModule:
        """Return the LightningModule that holds and trains `network`, and has no other tensors."""
        raise NotImplementedError


class ClassificationTask(Task, frozen=True):
    """A classification of a batch's `source` into one of the classes, the healthy one first."""

    source: ClassVar[str]

    classes: tuple[str, ...]
    loss: AnyLoss = CrossEntropy()

    def __post_init__(self) -> None:
        check_classes(self, self.classes)
        check_loss(self, self.loss)
        self.loss.outputs(len(self.classes))

    @property
    def outputs(self) -> int:
        return self.loss.outputs(len(self.classes))

    @property
    def scores(self) -> tuple[str, ...]:
        return ("val/loss", "val/auroc", "val/accuracy")

    def module(self, network: nn.Module, training: Training) -> LightningModule:
        from medfed.models.tasks._classification import Classification

        return Classification(self.source, self.classes, self.loss, network, training)


@runtime_checkable
class VoxelTask(Protocol):
    """What training, inference and gallery need of a task with `needs = "segment"` and no `metrics`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, the background first."""
        ...

    def labels(self, probabilities: Tensor) -> Tensor:
        """Return class numbers (B, 1, X, Y, Z) of probabilities (B, K, X, Y, Z)."""
        ...

    def labelled_at(self, site: str) -> tuple[int, ...]:
        """Return the numbers of the foreground classes that a hospital labelled."""
        ...


def check_loss(task: Task, loss: Loss) -> None:
    """Check that a loss serves the task.

    Raises:
        StudyError: naming the losses that do.
    """
    if task.needs not in loss.serves:
        suitable = ", ".join(name for name, kind in kinds("losses").items() if task.needs in _serves(kind))
        raise StudyError(
            f"task '{kind_of(task)}': loss '{kind_of(loss)}' is for {' and '.join(loss.serves)}; "
            f"take one of {suitable}"
        )


def _serves(kind: type[Kind]) -> tuple[str, ...]:
    return getattr(kind, "serves", ())


def check_classes(task: Task, classes: tuple[str, ...]) -> None:
    """Check that there are at least two classes, each with a unique name.

    Raises:
        StudyError: naming the duplicate, or if there are too few.
    """
    if len(classes) < 2:
        raise StudyError(
            f"task '{kind_of(task)}': classes has {len(classes)} names, at least 2 are needed, "
            f"the background or the healthy class first"
        )
    check_names(task, classes)


def check_names(task: Task, classes: tuple[str, ...]) -> None:
    """Check that each class has a unique name.

    Raises:
        StudyError: naming the duplicate.
    """
    for name in classes:
        if not name or classes.count(name) > 1:
            raise StudyError(
                f"task '{kind_of(task)}': classes: '{name}' is empty or a duplicate; each class "
                f"needs a unique name"
            )
