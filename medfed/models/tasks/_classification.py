"""The LightningModule that learns which class an image or a row of a table is of."""

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
    """Trains, validates and predicts whole images or rows, found in a batch under `source`.

    Logs `train/loss`, and over the whole validation set at once `val/loss`, `val/accuracy` and `val/auroc`,
    which a set of one class only doesn't have.
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
        """Return the logits (B, K), or (B, 1) where the loss wants one output for two classes."""
        logits: Tensor = self.network(plain(inputs))
        return logits

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        loss = self.loss(batch)
        size = len(batch["target"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=size)
        return loss

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a training batch, and log nothing."""
        return self.criterion(self(batch[self.source]).float(), plain(batch["target"]))

    def class_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return by class the sum of the cases' cross entropy, and how many cases there are: (2,) float64."""
        logits = self(batch[self.source]).float()
        if logits.shape[1] == 1:  # one output for two classes: its logit is the second's over the first's
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
        mine = torch.cat(self._rows) if self._rows else torch.zeros(0, 1)
        rows = gather_rows(mine, self._cases, self.device)
        self._rows, self._cases = [], []
        if not len(rows):
            return
        logits, target = rows[:, :-1], rows[:, -1].long()
        likely = probabilities(logits)
        self.log("val/loss", float(self.criterion(logits, target)))
        self.log("val/accuracy", float((likely.argmax(dim=1) == target).double().mean()), prog_bar=True)
        area = mean_auroc(likely.numpy(), target.numpy())
        if area is not None:
            self.log("val/auroc", area)

    def predict_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        return {"case": list(batch["case"]), "probabilities": probabilities(self(batch[self.source]).float())}

    def configure_optimizers(self) -> Configured:
        return self._configure(self.network)


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each class (B, K): softmax, or of one output the sigmoid and what is left."""
    if logits.shape[1] == 1:
        # Not 1 - sigmoid, which loses what is left of a small probability.
        return torch.cat([(-logits).sigmoid(), logits.sigmoid()], dim=1)
    return logits.softmax(dim=1)
