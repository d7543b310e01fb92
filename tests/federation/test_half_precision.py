"""Convolutions in bfloat16 on a CPU are refused at the start; everything else trains."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from simulated import simulated
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from medfed.aggregation.fedavg import FedAvg
from medfed.errors import QuorumError, StudyError
from medfed.exchange import SiteSide
from medfed.federation.callback import FederatedCallback
from medfed.federation.half_precision import refuse_bfloat16_convolutions
from medfed.wire.weights import weights_of


def trainer(precision: str, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
    )


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed"])
@pytest.mark.parametrize("layer", [nn.Conv3d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.ConvTranspose3d(1, 4, 3)])
def test_a_convolution_is_refused_by_name_with_the_cure(precision, layer):
    network = nn.ModuleDict({"stem": layer})
    with pytest.raises(StudyError, match=r"'north': precision is bf16.* 'stem' is a .* Use precision 32"):
        refuse_bfloat16_convolutions(trainer(precision), network, "north")


def test_other_layers_and_float32_train():
    refuse_bfloat16_convolutions(trainer("bf16-mixed"), nn.Linear(2, 2), "north")
    refuse_bfloat16_convolutions(trainer("32-true"), nn.Conv3d(1, 4, 3), "north")


class Convolution(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 2, 3)

    def training_step(self, batch, index):
        return self.stem(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_site_says_it_before_the_first_step():
    rows = DataLoader(TensorDataset(torch.ones(2, 1, 4, 4, 4)))

    def fit(exchange: SiteSide) -> None:
        with pytest.raises(StudyError, match=r"site 'north'.*'stem' is a convolution"):
            trainer("bf16-mixed", FederatedCallback("north", exchange, 1)).fit(Convolution(), rows)

    with pytest.raises(QuorumError, match="'stem' is a convolution"):
        simulated({"north": fit}, weights_of(Convolution()), rule=FedAvg(), rounds=1)
