"""The LightningModule that predicts a risk, learnt from times and events."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from medfed.models.losses import Loss
from medfed.models.networks._tree_ensemble import TreeEnsemble
from medfed.models.tasks._module import TaskModule
from medfed.models.tasks._scores import c_index
from medfed.models.tasks._training import Training


@final
class TimeToEvent(TaskModule):
    """Trains, validates and predicts on rows of a table.

    It logs `train/loss` and, over the whole validation set, `val/loss` (with the full risk sets)
    and `val/c_index`, which is undefined for a set without a comparable pair. A prediction holds
    `risk` (B,), a logarithm.
    """

    def __init__(self, loss: Loss, network: nn.Module, training: Training) -> None:
        super().__init__(network, loss.build(1), training)
        self._loss = loss
        if isinstance(network, TreeEnsemble):
            network.classifies.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Return the logarithms of risk (B, 1)."""
        risk: Tensor = self.network(features)
        return risk

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        target = batch["target"]
        if self.grows:
            return self.sum_patients(batch["features"], target, self._loss)
        loss = self.criterion(self(batch["features"]).float(), target)
        return self.log_train_loss(loss, len(target))

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        self.collect(torch.cat([self(batch["features"]), batch["target"]], dim=1), batch["case"])

    def log_scores(self, rows: Tensor) -> None:
        self.log("val/loss", float(self.criterion(rows[:, :1], rows[:, 1:])))
        concordance = c_index(*rows.numpy().T)
        if concordance is not None:
            self.log("val/c_index", concordance, prog_bar=True)

    def predict_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        return {"case": list(batch["case"]), "risk": self(batch["features"]).float().squeeze(1)}
