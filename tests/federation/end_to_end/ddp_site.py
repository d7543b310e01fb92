"""One site on two processes of one machine, run by test_callback.py; prints one line per rank."""

import sys
import threading

import pytorch_lightning as pl
import torch
from test_by_hand import BATCH, Net, data
from torch.utils.data import DataLoader

from medfed.aggregation.fedavg import FedAvg
from medfed.exchange import MemoryExchange
from medfed.federation.callback import FederatedCallback
from medfed.federation.config import HubConfig
from medfed.federation.hub import run_hub
from medfed.wire.update import Update
from medfed.wire.weights import digest, weights_of


class Counts(MemoryExchange):
    """A memory exchange that counts what this process sends, and the examples of the last model."""

    sent = 0
    examples = 0

    def send(self, update: Update) -> None:
        Counts.sent += 1
        Counts.examples = update.examples or Counts.examples
        super().send(update)


def main() -> None:
    torch.manual_seed(1)
    module, exchange = Net(), Counts()
    trainer = pl.Trainer(
        max_epochs=4,
        limit_train_batches=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[FederatedCallback("north", exchange, 2)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    final: list = []
    if trainer.global_rank == 0:
        plan = HubConfig(rounds=2, sites=("north",), rule=FedAvg())
        hub = threading.Thread(target=lambda: final.append(run_hub(plan, exchange, weights_of(module))))
        hub.start()
    trainer.fit(module, DataLoader(data("north"), BATCH), DataLoader(data("val"), 5))
    if trainer.global_rank == 0:
        hub.join()
        print(f"hub {digest(final[0].weights)} examples {Counts.examples}", flush=True)
    print(f"rank {trainer.global_rank} sent {Counts.sent} weights {digest(weights_of(module))}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
