"""A federation of which the model of round r is r: one weight that grows by 1 in every step."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

# The weight at which each site's validation loss is 0.
WANTS = {"north": 2.0, "south": 3.0}


class Counter(pl.LightningModule):
    """One weight that grows by 1 in every step."""

    def __init__(self, wants: float = 0.0) -> None:
        super().__init__()
        self.weight, self.wants = torch.nn.Parameter(torch.zeros(1)), wants

    def training_step(self, batch, index):
        return -self.weight.sum()

    def validation_step(self, batch, index):
        self.log("val/loss", (self.weight - self.wants).square().sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(2, 1)), 2)

    val_dataloader = train_dataloader


class Killed(pl.Callback):
    """Stops a site in one epoch, as kill -9 would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("killed")
