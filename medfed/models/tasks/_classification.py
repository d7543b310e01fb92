"""The LightningModule that classifies whole images or rows of a table."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from medfed.models.losses import Loss
from medfed.models.tasks._module import TaskModule, class_losses, inputs_of, plain
from medfed.models.tasks._scores import mean_auroc
from medfed.models.tasks._training import Training


@final
class Classification(TaskModule):
    """Trains, validates and predicts on whole images or rows, which a batch holds under `source`.

    It logs `train/loss` and, over the whole validation set, `val/loss`, `val/accuracy` and `val/auroc`, which
    is undefined for a set of a single class.
    """

    def __init__(
        self, source: str, classes: tuple[str, ...], loss: Loss, network: nn.Module, training: Training
    ) -> None:
        super().__init__(network, loss.build(len(classes)), training)
        self.source = source
        self.classes = classes
        self._loss = loss

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits (B, K), or (B, 1) if the loss takes one output for two classes.

        The inputs are those of the network: images or rows, and the columns beside images, if there are any.
        """
        logits: Tensor = self.network(*map(plain, inputs))
        return logits

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        if self.grows:
            return self.sum_patients(batch[self.source], batch["target"], self._loss)
        return self.log_train_loss(self.loss(batch), len(batch["target"]))

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a training batch; nothing is logged."""
        return self.criterion(self(*inputs_of(batch, self.source)).float(), plain(batch["target"]))

    def class_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return each class's sum of cross entropy and number of cases, as (2,) float64."""
        logits = self(*inputs_of(batch, self.source)).float()
        if logits.shape[1] == 1:  # one output for two classes: the logit of the second relative to the first
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return class_losses(logits, plain(batch["target"]), self.classes)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        logits = self(*inputs_of(batch, self.source))
        self.collect(torch.cat([logits.float(), plain(batch["target"])[:, None]], dim=1), batch["case"])

    def log_scores(self, rows: Tensor) -> None:
        logits, target = rows[:, :-1], rows[:, -1].long()
        probability = probabilities(logits)
        self.log("val/loss", float(self.criterion(logits, target)))
        self.log("val/accuracy", float((probability.argmax(dim=1) == target).double().mean()), prog_bar=True)
        auroc = mean_auroc(probability.numpy(), target.numpy())
        if auroc is not None:
            self.log("val/auroc", auroc)

    def predict_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        return {
            "case": list(batch["case"]),
            "probabilities": probabilities(self(*inputs_of(batch, self.source)).float()),
        }


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each class (B, K): softmax, or sigmoid and its complement for one output."""
    if logits.shape[1] == 1:
        # Not 1 - sigmoid, which loses the precision of a small probability.
        return torch.cat([(-logits).sigmoid(), logits.sigmoid()], dim=1)
    return logits.softmax(dim=1)
