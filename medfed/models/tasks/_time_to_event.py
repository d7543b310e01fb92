"""The LightningModule that predicts a risk, learnt from times and events."""

from __future__ import annotations

from functools import partial
from typing import Any, final

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from medfed.models.losses import Loss
from medfed.models.optimisers import Optimiser
from medfed.models.schedules import Schedule
from medfed.models.tasks._gather import gather_rows
from medfed.models.tasks._optimisation import Configured, optimisation
from medfed.models.tasks._scores import c_index


@final
class TimeToEvent(LightningModule):
    """Trains, validates and predicts on rows of a table.

    It logs `train/loss` and, over the whole validation set, `val/loss` (with the full risk sets)
    and `val/c_index`, which is undefined for a set without a comparable pair. A prediction holds
    `risk` (B,), a logarithm.
    """

    def __init__(
        self, loss: Loss, network: nn.Module, optimiser: Optimiser, schedule: Schedule, epochs: int
    ) -> None:
        super().__init__()
        self.network = network
        self.criterion = loss.build(1)
        self._configure = partial(optimisation, optimiser=optimiser, schedule=schedule, epochs=epochs)
        self._rows: list[Tensor] = []
        self._cases: list[str] = []

    def forward(self, features: Tensor) -> Tensor:
        """Return the logarithms of risk (B, 1)."""
        risk: Tensor = self.network(features)
        return risk

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        target = batch["target"]
        loss = self.criterion(self(batch["features"]).float(), target)
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(target))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._rows, self._cases = [], []

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        risk = self(batch["features"])
        self._rows.append(torch.cat([risk, batch["target"]], dim=1).to("cpu", torch.float64))
        self._cases += batch["case"]

    def on_validation_epoch_end(self) -> None:
        own_rows = torch.cat(self._rows) if self._rows else torch.zeros(0, 3)
        rows = gather_rows(own_rows, self._cases, self.device)
        self._rows, self._cases = [], []
        if not len(rows):
            return
        self.log("val/loss", float(self.criterion(rows[:, :1], rows[:, 1:])))
        concordance = c_index(*rows.numpy().T)
        if concordance is not None:
            self.log("val/c_index", concordance, prog_bar=True)

    def predict_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        return {"case": list(batch["case"]), "risk": self(batch["features"]).float().squeeze(1)}

    def configure_optimizers(self) -> Configured:
        return self._configure(self.network)
