"""The LightningModule that predicts several findings per image."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from medfed.models.losses import Loss
from medfed.models.tasks._module import TaskModule, inputs_of, plain
from medfed.models.tasks._scores import auroc
from medfed.models.tasks._training import Training


@final
class FindingClassification(TaskModule):
    """Trains, validates and predicts on whole images, with one logit per finding.

    It logs `train/loss` and, over the whole validation set, `val/loss` and `val/auroc`: the mean over the
    findings that some images show and others do not, of the images in which each was labelled.
    """

    def __init__(self, classes: tuple[str, ...], loss: Loss, network: nn.Module, training: Training) -> None:
        super().__init__(network, loss.build(len(classes)), training)
        self.classes = classes

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits (B, K), one per finding, of images and, if there are any, columns beside them."""
        logits: Tensor = self.network(*map(plain, inputs))
        return logits

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        return self.log_train_loss(self.loss(batch), len(batch["target"]))

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a training batch; nothing is logged."""
        return self.criterion(self(*inputs_of(batch, "image")).float(), plain(batch["target"]))

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        rows = torch.cat([self(*inputs_of(batch, "image")).float(), plain(batch["target"])], dim=1)
        self.collect(rows, batch["case"])

    def log_scores(self, rows: Tensor) -> None:
        logits, target = rows.chunk(2, dim=1)
        self.log("val/loss", float(self.criterion(logits, target)))
        scores = [_labelled_auroc(*pair) for pair in zip(logits.T.numpy(), target.T.numpy(), strict=True)]
        known = [score for score in scores if score is not None]
        if known:
            self.log("val/auroc", float(np.mean(known)), prog_bar=True)

    def predict_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        """Return the probability of each finding (B, K); they do not sum to one."""
        return {
            "case": list(batch["case"]),
            "probabilities": self(*inputs_of(batch, "image")).float().sigmoid(),
        }


def _labelled_auroc(logits: np.ndarray, target: np.ndarray) -> float | None:
    labelled = ~np.isnan(target)
    return auroc(logits[labelled], target[labelled] == 1)
