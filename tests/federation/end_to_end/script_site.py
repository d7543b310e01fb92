"""One site of a federation as two processes of one machine (DDP); run by test_own_scripts.py.

Arguments: the exchange's settings as JSON, and a folder. Each rank prints one line.
"""

import json
import sys
from pathlib import Path

import msgspec
import pytorch_lightning as pl
import torch
from test_by_hand import Net
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.exchange import Exchange
from medfed.wire.weights import digest, weights_of

ROWS = 13  # odd: the two ranks' batches are not equal


def main(settings: str, folder: str) -> None:
    kind, own = json.loads(settings)
    exchange: Exchange = msgspec.convert(own, {"folder": medfed.Folder, "nats": medfed.Nats}[kind])
    torch.manual_seed(1)
    module = Net()
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(ROWS, 5, generator=generator)
    data = TensorDataset(features, (features.sum(1) > 0).long())
    with medfed.open_site(exchange, "north", study="two processes", folder=folder, timeout_s=60) as site:
        trainer = pl.Trainer(
            max_epochs=4, accelerator="cpu", devices=2, strategy="ddp", logger=False,
            callbacks=[medfed.FederatedCallback("north", site, 2, examples=ROWS)],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, 4), DataLoader(data, 5))
        line = f"rank {trainer.global_rank} connected {site.is_open} weights {digest(weights_of(module))}\n"
    Path(folder, f"rank-{trainer.global_rank}").write_text(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
