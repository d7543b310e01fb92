"""One site of a sum on two processes, run by test_two_processes.py; prints one line of JSON per rank."""

import hashlib
import json
import sys
import threading

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from medfed.aggregation.fedavg import FedAvg
from medfed.exchange import MemoryExchange
from medfed.federation.callback import FederatedCallback
from medfed.federation.config import HubConfig
from medfed.federation.hub import run_hub
from medfed.privacy import Privacy
from medfed.wire.update import Update
from medfed.wire.weights import Weights, weights_of

CASES, EPOCHS = 12, 3


class SumOnly(Privacy, tag="sum_only", frozen=True):
    """A sum of one, so that training draws from a secret without an exchange of keys."""

    reveals_each_update = False

    def protect(self, update: Update, weights: Weights) -> Update:
        return update


class Net(pl.LightningModule):
    """One weight, which keeps the cases of each epoch and what torch draws in it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []
        self.drawn: list[float] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch, index):
        (cases,) = batch
        self.seen[-1] += cases[:, 0].int().tolist()
        self.drawn.append(float(torch.rand(())))
        return self.w(cases).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def main() -> None:
    torch.manual_seed(1)
    module, exchange = Net(), MemoryExchange()
    callback = FederatedCallback("north", exchange, EPOCHS, privacy=SumOnly(), seed=3)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if trainer.global_rank == 0:
        plan = HubConfig(rounds=1, sites=("north",), rule=FedAvg(), privacy=SumOnly())
        hub = threading.Thread(target=lambda: run_hub(plan, exchange, weights_of(module)), daemon=True)
        hub.start()
    rows = TensorDataset(torch.arange(float(CASES))[:, None])
    trainer.fit(module, DataLoader(rows, 2, shuffle=True))
    # A digest only: a secret is printed nowhere.
    secret = hashlib.sha256(str(callback.secret_seed).encode()).hexdigest()
    found = {"rank": trainer.global_rank, "secret": secret, "seen": module.seen, "drawn": module.drawn}
    print(f"\n{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
