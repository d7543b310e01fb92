"""One hospital on two processes, run by test_ddp.py; each writes what it read and trained on."""

import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch

import medfed.data.dataset
from medfed.data.datamodule import SiteDataModule
from medfed.data.settings import Images, Unreadable
from medfed.deployment.ddp import Rank0Exchange, is_worker, read_left_out

read: list[str] = []
trained: list[str] = []


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch):
        trained.extend(batch["case"])
        return (self.weight * batch["image"]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def counted(prepare):
    def prepare_counted(case, *rest):
        read.append(case.token)
        return prepare(case, *rest)

    return prepare_counted


def main(folder: Path) -> None:
    settings = Images(spacing_mm="native", patch=(16, 16, 16), samples=1, augment="none")
    data = SiteDataModule.open(folder / "north", settings, "segment", site_secret=b"x" * 32, classes=2)
    medfed.data.dataset.prepare_case = counted(medfed.data.dataset.prepare_case)
    if is_worker():
        data.leave_out_tokens(read_left_out(folder))
    else:
        data.leave_out(data.screen(), Unreadable())
        Rank0Exchange(None, folder, folder, data.left_out_tokens)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(Net(), data)
    lines = {"rank": trainer.global_rank, "examples": data.examples, "read": read, "trained": trained}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
