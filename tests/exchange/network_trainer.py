"""A hospital of a network that is not medfed's, as a process or a thread: the same module, data and callback.

python network_trainer.py north flower EXCHANGE FOLDER ROUNDS
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

import medfed

ROUNDS = 3
CASES = {"north": 12, "south": 20}


class Model(pl.LightningModule):
    """Batch norm has an integer buffer, which FedAvg of another framework turns into floats."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        features, target = batch
        return torch.nn.functional.mse_loss(self.net(features), target)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Not Adam: it divides a bias before batch norm, whose gradient is rounding alone, by its own size.
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def cases(site: str) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(len(site) + ord(site[0]))
    features = torch.randn(CASES[site], 4, generator=generator)
    return DataLoader(TensorDataset(features, features.sum(1, keepdim=True)), batch_size=4)


def train(
    site: str,
    exchange: Any,
    rounds: int = ROUNDS,
    callbacks: Sequence[pl.Callback] = (),
    resume: Path | None = None,
    **options: Any,
) -> Model:
    """Train over an exchange's side and return the module, which holds the final model."""
    module, federated = Model(), medfed.FederatedCallback(site, exchange, **options)
    trainer = pl.Trainer(
        max_epochs=rounds, callbacks=[federated, *callbacks], accelerator="cpu", logger=False,
        num_sanity_val_steps=0, enable_checkpointing=bool(callbacks), enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, cases(site), cases(site), ckpt_path=resume)
    return module


def in_memory(rounds: int = ROUNDS) -> dict[str, torch.Tensor]:
    """Return the final weights of the same hospitals over medfed's memory exchange."""
    final = medfed.run_federation(
        {site: lambda exchange, site=site: train(site, exchange, rounds) for site in CASES},
        medfed.weights_of(Model()),
        rule="fedavg",
        rounds=rounds,
    )
    return dict(final.weights)


def largest_difference(weights: dict[str, torch.Tensor], others: dict[str, Any]) -> float:
    """Return the largest difference of two models relative to the larger of its value and 1."""
    return max(
        float(((tensor - torch.as_tensor(others[name])).abs() / tensor.abs().clamp(min=1)).max())
        for name, tensor in weights.items()
    )


if __name__ == "__main__":
    name, kind, where, folder, rounds = sys.argv[1:]
    torch.set_num_threads(1)
    exchange: Any
    if kind == "flower":
        from medfed.exchange.flower import Flower

        exchange = Flower(rounds=int(rounds), handoff=where, metrics=("train/loss", "val/loss"))
    else:
        from medfed.exchange.nvflare import Nvflare

        exchange = Nvflare(profile=where, rounds=int(rounds), metrics=("train/loss", "val/loss"))
    with medfed.open_site(exchange, name, study="network", folder=folder, timeout_s=240) as side:
        module = train(name, side, int(rounds))
    torch.save(module.state_dict(), Path(folder) / "final.pt")
