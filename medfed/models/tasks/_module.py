"""What the LightningModules of all tasks share: the optimiser, and scores over a whole validation set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional

from medfed.errors import StudyError
from medfed.models.losses import Criterion, Loss
from medfed.models.networks._tree_ensemble import TreeEnsemble
from medfed.models.tasks._gather import gather_rows
from medfed.models.tasks._training import Training


class TaskModule(LightningModule):
    """Holds the network; a task adds its steps, and `log_scores` of the rows that they collect."""

    def __init__(self, network: nn.Module, criterion: Criterion, training: Training) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self._training = training
        self._rows: list[Tensor] = []
        self._cases: list[str] = []
        self._patients: list[tuple[Tensor, Tensor]] = []
        if self.grows:  # nothing is trained by gradients
            self.automatic_optimization = False

    @property
    def grows(self) -> bool:
        """Whether the network is of trees, which the hub grows from sums of this module's training cases."""
        return isinstance(self.network, TreeEnsemble)

    def sum_patients(self, features: Tensor, target: Tensor, loss: Loss) -> Tensor:
        """Keep a training batch; after the epoch's last one, put the sums of all into the trees' `sums`.

        Returns the loss of the batch, from which nothing is trained.
        """
        assert isinstance(self.network, TreeEnsemble)
        if self.trainer.world_size > 1:
            raise StudyError(
                "network 'boosted_trees' sums the cases of one process, and this site trains in "
                f"{self.trainer.world_size}; use one device"
            )
        self._patients.append((features, target))
        if self.trainer.is_last_batch:
            rows, targets = (torch.cat(parts) for parts in zip(*self._patients, strict=True))
            self.network.collect(rows, lambda scores: loss.derivatives(scores, targets))
        with torch.no_grad():
            return self.log_train_loss(self.criterion(self(features), target), len(target))

    def on_train_epoch_start(self) -> None:
        self._patients = []

    def log_train_loss(self, loss: Tensor, batch_size: int) -> Tensor:
        """Log `train/loss`, and return it."""
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=batch_size)
        return loss

    def collect(self, rows: Tensor, cases: list[str]) -> None:
        """Keep one row of numbers (n, m) per validation case until the end of the epoch."""
        self._rows.append(rows.to("cpu", torch.float64))
        self._cases += cases

    def log_scores(self, rows: Tensor) -> None:
        """Log the `val/` scores of the rows (n, m), float64, of all validation cases of the hospital."""
        raise NotImplementedError

    def on_validation_epoch_start(self) -> None:
        self._rows, self._cases = [], []

    def on_validation_epoch_end(self) -> None:
        own_rows = torch.cat(self._rows) if self._rows else torch.zeros(0, 1)
        rows = gather_rows(own_rows, self._cases, self.device)
        self._rows, self._cases = [], []
        if len(rows):
            self.log_scores(rows)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.grows:
            return None
        return self._training.configure(self.network)


def inputs_of(batch: Mapping[str, Any], source: str) -> tuple[Tensor, ...]:
    """Return what the network sees of a batch: its `source`, and `tabular` if images have a table beside."""
    tabular = batch.get("tabular")
    return (batch[source],) if tabular is None else (batch[source], tabular)


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor without MONAI's metadata, which costs a Python call in every operation."""
    as_tensor = getattr(tensor, "as_tensor", None)
    return tensor if as_tensor is None else as_tensor()


def over_levels(outputs: Tensor, ndim: int, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the loss of a network's outputs (B, K, ...), which have `ndim` axes.

    Of deep supervision, (B, levels, K, ...), it is the mean over the levels, the finest first, each with half
    the weight of the previous.
    """
    if outputs.ndim == ndim:
        return loss(outputs)
    weights = [0.5**level for level in range(outputs.shape[1])]
    losses = [weight * loss(one) for weight, one in zip(weights, outputs.unbind(1), strict=True)]
    return torch.stack(losses).sum() / sum(weights)


def class_losses(logits: Tensor, target: Tensor, classes: Sequence[str]) -> dict[str, Tensor]:
    """Return each class's sum of cross entropy and number of examples (or voxels), as (2,) float64.

    By these the hub finds sites with noisy labels (aggregation/fednoro.py). Logits are (B, K, ...), the
    target (B, ...) of class numbers.
    """
    each = functional.cross_entropy(logits, target.long(), reduction="none").double()
    losses = {}
    for number, name in enumerate(classes):
        of_class = target == number
        losses[name] = torch.stack([each[of_class].sum(), of_class.sum().double()])
    return losses
