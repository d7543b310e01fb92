"""Survival from rows of a table: the time until an event, with censored patients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medfed.models.losses.cox import Cox
from medfed.models.tasks._task import AnyLoss, Task, check_loss
from medfed.models.tasks._training import Training

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
    from torch import nn


class Survival(Task, tag="survival", frozen=True):
    """Survival from rows of a table: one output, the logarithm of a patient's relative risk."""

    needs = "survival"

    loss: AnyLoss = Cox()

    def __post_init__(self) -> None:
        check_loss(self, self.loss)

    @property
    def outputs(self) -> int:
        return self.loss.outputs(1)

    @property
    def scores(self) -> tuple[str, ...]:
        return ("val/loss", "val/c_index")

    def module(self, network: nn.Module, training: Training) -> LightningModule:
        from medfed.models.tasks._time_to_event import TimeToEvent

        return TimeToEvent(self.loss, network, training)
