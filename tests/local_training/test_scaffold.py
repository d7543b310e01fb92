"""SCAFFOLD on quadratics against explicit steps, through the real callback, exchange and rule."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.scaffold import Scaffold as ScaffoldRule
from medfed.errors import StudyError
from medfed.federation.callback import FederatedCallback
from medfed.local_training.scaffold import Scaffold

CENTRES = {"a": (2.0, 1.0), "b": (-1.0, 3.0)}  # centre and curvature: loss h / 2 (w - m)^2
RATE, STEPS, ROUNDS = 0.1, 4, 5


class Quadratic(pl.LightningModule):
    def __init__(self, site: str) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.centre, self.curvature = CENTRES[site]

    def training_step(self, batch, index):
        return (self.curvature / 2 * (self.w - self.centre) ** 2).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


def federated(rule, local) -> float:
    def site(name):
        def fit(exchange):
            callback = FederatedCallback(name, exchange, 1, local=local)
            trainer = pl.Trainer(
                max_epochs=ROUNDS,
                callbacks=[callback],
                logger=False,
                enable_checkpointing=False,
                accelerator="cpu",
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(Quadratic(name), DataLoader(TensorDataset(torch.zeros(STEPS, 1)), 1))

        return fit

    start = {"w": torch.zeros(1, dtype=torch.float64)}
    return float(
        medfed.run_federation({n: site(n) for n in CENTRES}, start, rule=rule, rounds=ROUNDS).weights["w"]
    )


def by_hand() -> float:
    x, c, own = 0.0, 0.0, dict.fromkeys(CENTRES, 0.0)
    for _ in range(ROUNDS):
        models, changes = [], []
        for site, (centre, curvature) in CENTRES.items():
            y = x
            for _ in range(STEPS):
                y -= RATE * (curvature * (y - centre) - own[site] + c)
            new = own[site] - c + (x - y) / (STEPS * RATE)
            models.append(y)
            changes.append(new - own[site])
            own[site] = new
        x, c = sum(models) / 2, c + sum(changes) / 2
    return x


def test_scaffold_by_hand():
    assert federated(ScaffoldRule(), Scaffold()) == pytest.approx(by_hand(), rel=1e-6)


def test_scaffold_ends_nearer_the_joint_optimum_than_fedavg():
    # The sum of both losses is least at (1 * 2 + 3 * -1) / 4 = -0.25; FedAvg's fixed point lies elsewhere.
    assert abs(federated(ScaffoldRule(), Scaffold()) + 0.25) < abs(federated(FedAvg(), None) + 0.25)


def test_a_study_that_names_only_one_half_is_told(tmp_path):
    from hospitals import write_study

    study = write_study(tmp_path)
    with pytest.raises(
        StudyError,
        match=r"rule\.kind: 'scaffold' merges the group 'control'.*train\.local: \{kind: scaffold\}",
    ):
        medfed.read_study(study, ["rule.kind=scaffold"])
    medfed.read_study(study, ["rule.kind=scaffold", "train.local.kind=scaffold"])
