"""The LightningModule that classifies whole images or rows of a table."""

from __future__ import annotations

from functools import partial
from typing import Any, final

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from medfed.models.losses import Loss
from medfed.models.optimisers import Optimiser
from medfed.models.schedules import Schedule
from medfed.models.tasks._class_losses import class_losses
from medfed.models.tasks._gather import gather_rows
from medfed.models.tasks._optimisation import Configured, optimisation, plain
from medfed.models.tasks._scores import mean_auroc


@final
class Classification(LightningModule):
    """Trains, validates and predicts on whole images or rows, which a batch holds under `source`.

    It logs `train/loss` and, over the whole validation set, `val/loss`, `val/accuracy` and `val/auroc`, which
    is undefined for a set of a single class.
    """

    def __init__(
        self,
        source: str,
        classes: tuple[str, ...],
        loss: Loss,
        network: nn.Module,
        optimiser: Optimiser,
        schedule: Schedule,
        epochs: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.source = source
        self.classes = classes
        self.criterion = loss.build(len(classes))
        self._configure = partial(optimisation, optimiser=optimiser, schedule=schedule, epochs=epochs)
        self._rows: list[Tensor] = []
        self._cases: list[str] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, K), or (B, 1) if the loss takes one output for two classes."""
        logits: Tensor = self.network(plain(inputs))
        return logits

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        loss = self.loss(batch)
        size = len(batch["target"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=size)
        return loss

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a training batch; nothing is logged."""
        return self.criterion(self(batch[self.source]).float(), plain(batch["target"]))

    def class_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return each class's sum of cross entropy and number of cases, as (2,) float64."""
        logits = self(batch[self.source]).float()
        if logits.shape[1] == 1:  # one output for two classes: the logit of the second relative to the first
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return class_losses(logits, plain(batch["target"]), self.classes)

    def on_validation_epoch_start(self) -> None:
        self._rows, self._cases = [], []

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        logits = self(batch[self.source])
        self._rows.append(
            torch.cat([logits.float(), plain(batch["target"])[:, None]], dim=1).to("cpu", torch.float64)
        )
        self._cases += batch["case"]

    def on_validation_epoch_end(self) -> None:
        own_rows = torch.cat(self._rows) if self._rows else torch.zeros(0, 1)
        rows = gather_rows(own_rows, self._cases, self.device)
        self._rows, self._cases = [], []
        if not len(rows):
            return
        logits, target = rows[:, :-1], rows[:, -1].long()
        probability = probabilities(logits)
        self.log("val/loss", float(self.criterion(logits, target)))
        self.log("val/accuracy", float((probability.argmax(dim=1) == target).double().mean()), prog_bar=True)
        auroc = mean_auroc(probability.numpy(), target.numpy())
        if auroc is not None:
            self.log("val/auroc", auroc)

    def predict_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        return {"case": list(batch["case"]), "probabilities": probabilities(self(batch[self.source]).float())}

    def configure_optimizers(self) -> Configured:
        return self._configure(self.network)


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each class (B, K): softmax, or sigmoid and its complement for one output."""
    if logits.shape[1] == 1:
        # Not 1 - sigmoid, which loses the precision of a small probability.
        return torch.cat([(-logits).sigmoid(), logits.sigmoid()], dim=1)
    return logits.softmax(dim=1)
