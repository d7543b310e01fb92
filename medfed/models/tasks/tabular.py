"""Classification of rows of a table, such as disease prediction from laboratory values."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from medfed.models._needs import Needs
from medfed.models.losses import Loss
from medfed.models.losses.cross_entropy import CrossEntropy
from medfed.models.tasks._task import Task, check_classes, check_loss
from medfed.registry import union

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
    from torch import nn

    from medfed.models.optimisers import Optimiser
    from medfed.models.schedules import Schedule

    AnyLoss = Loss
else:
    AnyLoss = union("losses")


class Tabular(Task, tag="tabular", frozen=True):
    """Classification of rows of a table into one of the classes, the healthy one first."""

    needs: ClassVar[Needs] = "table"

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
        from medfed.models.tasks._classification import Classification

        return Classification("features", self.classes, self.loss, network, optimiser, schedule, epochs)
