"""Classification of whole images: disease or not, or one of several."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from medfed.kinds import union
from medfed.losses import Loss
from medfed.losses.cross_entropy import CrossEntropy
from medfed.tasks._task import Needs, Task, check_classes, check_loss

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
    from torch import nn

    from medfed.optimisers import Optimiser
    from medfed.schedules import Schedule

    AnyLoss = Loss
else:
    AnyLoss = union("losses")


class Classify(Task, tag="classify", frozen=True):
    """Classification of whole images into one of the classes, the healthy one first."""

    needs: ClassVar[Needs] = "classify"

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
        return ("val/loss", "val/accuracy", "val/auroc")

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
        from medfed.tasks._classification import Classification

        return Classification("image", self.classes, self.loss, network, optimiser, schedule, epochs)
