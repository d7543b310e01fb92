"""The epsilon that dp_sgd reports holds against an audit of the real training, and sabotage does not pass it.

Each canary is a patient whose gradient is a direction of its own, far longer than the clip, and takes part
with probability 1/2. Whoever sees the final model guesses which: those along whose directions it went
furthest.
"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from one_run_audit import ERROR, lower_bound, p_value
from simulated import simulated
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from medfed.aggregation.fedavg import FedAvg
from medfed.federation import private_training
from medfed.federation.config import SiteConfig
from medfed.federation.site import ChargedPatients, SiteRun, train_site
from medfed.privacy import _noise as noise
from medfed.privacy.accounting.ledger import data_set
from medfed.privacy.dp_sgd import DPSGD, EPSILON
from medfed.wire.weights import weights_of

CANARIES, GUESSES, TARGET, DELTA = 2000, 200, 2.0, 1e-6
RATE, ROUNDS = 8, 2  # an eighth of the patients in a step, two epochs of eight steps


class Directions(pl.LightningModule):
    """A patient's gradient is -20 along the weight with the patient's number."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(CANARIES))

    def loss(self, batch):
        return -20 * torch.index_select(self.w, 0, batch[0]).mean()

    def training_step(self, batch, index):
        return self.loss(batch)

    def validation_step(self, batch, index):
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Canaries(pl.LightningDataModule):
    def __init__(self, taking_part: torch.Tensor) -> None:
        super().__init__()
        self.rows = TensorDataset(taking_part)

    def train_dataloader(self):
        return DataLoader(self.rows, 1)

    def val_dataloader(self):
        return DataLoader(self.rows, len(self.rows))


def audit(folder) -> tuple[float, float]:
    """Return the epsilon that a study reports, and the audit's lower bound on it."""
    inside = np.random.default_rng(0).random(CANARIES) < 0.5
    taking_part = torch.from_numpy(np.flatnonzero(inside))
    count = len(taking_part)
    privacy = DPSGD(epsilon=TARGET, delta=DELTA, clip=1.0, accountant="rdp", at_once=64)
    patients = ChargedPatients(
        "study", data_set([str(n) for n in range(count)], b"a secret of 16 b"), [(n,) for n in range(count)]
    )

    def work(exchange):
        config = SiteConfig(ROUNDS, 1, batch=count // RATE, privacy=privacy, accelerator="cpu")
        run = SiteRun(folder / "north", examples=count, patients=patients)
        train_site("north", Directions(), Canaries(taking_part), exchange, config, run)

    reports = []
    (folder / "north").mkdir()
    final = simulated(
        {"north": work}, weights_of(Directions()), rule=FedAvg(), rounds=ROUNDS, privacy=privacy,
        on_round=reports.append,
    )  # fmt: skip
    likeliest = np.argsort(-final.weights["w"].numpy(), kind="stable")[:GUESSES]
    correct = int(inside[likeliest].sum())
    return reports[ROUNDS - 1].results[0].scalars[EPSILON], lower_bound(CANARIES, GUESSES, correct, DELTA)


@pytest.fixture
def repeatable(monkeypatch):
    """Let the operating system's bits be the same in each run of the test."""
    monkeypatch.setattr(noise.os, "urandom", random.Random(0).randbytes)


@pytest.mark.slow
def test_the_reported_epsilon_withstands_the_audit(tmp_path, repeatable):
    reported, bound = audit(tmp_path)
    assert reported == pytest.approx(TARGET, abs=0.02)
    # The attack is not blind, and refutes less than what is reported.
    assert 0.1 < bound < reported


def no_noise(monkeypatch):
    monkeypatch.setattr(noise, "gaussian", lambda shape, deviation: torch.zeros(shape, dtype=torch.float64))


def no_clip(monkeypatch):
    true = private_training.clipped_sum
    monkeypatch.setattr(private_training, "clipped_sum", lambda gradients, clip: true(gradients, math.inf))


def noise_of_the_mean(monkeypatch):
    true = noise.gaussian
    monkeypatch.setattr(noise, "gaussian", lambda shape, deviation: true(shape, deviation / 10))


def everyone_in_each_step(monkeypatch):
    monkeypatch.setattr(noise, "poisson_sample", lambda count, chance: list(range(count)))


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", [no_noise, no_clip, noise_of_the_mean, everyone_in_each_step])
def test_training_that_breaks_its_promise_is_found_out(tmp_path, repeatable, monkeypatch, sabotage):
    sabotage(monkeypatch)
    reported, bound = audit(tmp_path)
    assert reported == pytest.approx(TARGET, abs=0.02)
    assert bound > reported


def test_the_bound_without_a_delta_by_hand():
    # All of 100 guesses are right with probability q^100; q = ERROR^(1/100), epsilon = log(q / (1 - q)).
    q = ERROR ** (1 / 100)
    assert lower_bound(1000, 100, 100, 0.0) == pytest.approx(math.log(q / (1 - q)), abs=2e-3)
    assert lower_bound(1000, 100, 50, 0.0) == 0.0


def test_the_term_of_delta_by_hand():
    # One guess, right: q, and 2 canaries delta (f(0) - f(1)) / 1 = 2 * 3 * 0.01 (1 - q).
    q = 1 / (1 + math.exp(-1.0))
    assert p_value(3, 1, 1, 1.0, 0.01) == pytest.approx(q + 0.06 * (1 - q))
    # Two guesses, both right: f(2) = q^2, f(1) - f(2) = 2 q (1 - q), (f(0) - f(2)) / 2 = (1 - q^2) / 2.
    most = max(2 * q * (1 - q), (1 - q * q) / 2)
    assert p_value(3, 2, 2, 1.0, 0.01) == pytest.approx(q * q + 0.06 * most)
