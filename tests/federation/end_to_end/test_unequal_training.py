"""Hospitals that train different numbers of epochs and batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hospitals import make_hospital, write_study
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fednova import FedNova
from medfed.errors import StudyError
from medfed.federation.callback import FederatedCallback
from medfed.pipeline.factory import module_of, site_config_of

torch.set_num_threads(1)


def test_a_site_trains_its_own_epochs_and_batch(tmp_path: Path) -> None:
    for name in ("north", "south", "west"):
        make_hospital(tmp_path / name)
    path = write_study(tmp_path, rounds=2)
    overrides = [
        "site_overrides={south: {epochs: 3, batch: 1}}",
        "rule.kind=fednova",
        "evaluation.local_models=false",
    ]
    study = medfed.read_study(path, overrides)
    assert (study.at("north").train.epochs, study.at("north").train.batch) == (1, 2)
    assert (site_config_of(study, "south").epochs, site_config_of(study, "south").local_epochs) == (6, 3)
    assert module_of(study, "south")._training.epochs == 6
    run = medfed.train(path, out=tmp_path / "run", overrides=overrides)
    import json

    rows = [json.loads(line) for line in run.rounds.read_text().splitlines()]
    steps = {(row["round"], row["site"]): row["scalars"].get("train/steps") for row in rows}
    # Four training cases each: 2 batches of 2, or 3 epochs of 4 batches of 1.
    assert [steps[1, "north"], steps[1, "south"], steps[2, "north"], steps[2, "south"]] == [2, 12, 2, 12]


def test_an_override_of_an_unknown_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"site_overrides: 'soth' is not one of the study's sites; did you mean 'south'"
    ):
        medfed.read_study(write_study(tmp_path), ["site_overrides={soth: {epochs: 2}}"])


def test_fednova_solves_the_stated_problem_with_sites_of_unlike_epochs_and_batches() -> None:
    # Minima at -1 and 1, equal examples: the joint one is 0. The second takes 6 times the steps.
    class Line(pl.LightningModule):
        def __init__(self, centre: float) -> None:
            super().__init__()
            self.w, self.centre = nn.Parameter(torch.zeros(1, dtype=torch.float64)), centre

        def training_step(self, batch, index):
            return ((self.w - self.centre) ** 2).sum() / 2

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.02)

    rounds = 60

    def end(rule) -> float:
        def site(name: str, centre: float, epochs: int, batch: int):
            def work(exchange):
                trainer = pl.Trainer(
                    max_epochs=rounds * epochs,
                    callbacks=[FederatedCallback(name, exchange, epochs)],
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    accelerator="cpu",
                )
                trainer.fit(Line(centre), DataLoader(TensorDataset(torch.zeros(4, 1)), batch))

            return work

        sites = {"a": site("a", -1.0, 1, 4), "b": site("b", 1.0, 3, 2)}
        start = {"w": torch.zeros(1, dtype=torch.float64)}
        return float(medfed.run_federation(sites, start, rule=rule, rounds=rounds).weights["w"])

    def by_hand(nova: bool) -> float:
        w = 0.0
        for _ in range(rounds):
            a, b = -1 + (w + 1) * 0.98, 1 + (w - 1) * 0.98**6
            w += 3.5 * ((a - w) + (b - w) / 6) / 2 if nova else (a + b) / 2 - w
        return w

    assert end(FedNova()) == pytest.approx(by_hand(True), rel=1e-9, abs=1e-12)
    assert end(FedAvg()) == pytest.approx(by_hand(False), rel=1e-9)
    assert abs(by_hand(True)) < 0.1 < 0.6 < by_hand(False)
