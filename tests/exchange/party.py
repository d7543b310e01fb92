"""Run one party of a federation as a process: `python party.py hub|site <settings.json>`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import nats.aio.client  # noqa: F401 - imported before the parties are forked: each would import it again
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from medfed.aggregation.fedavg import FedAvg
from medfed.federation.config import HubConfig, SiteConfig
from medfed.federation.hub import run_hub
from medfed.federation.site import SiteRun, train_site
from medfed.registry import union
from medfed.wire.weights import digest, weights_of

with suppress(ImportError):
    import omegaconf  # noqa: F401 - where it is installed, Lightning looks for it with each checkpoint

STUDY = "cd" * 32
SIZES = {"north": 12, "south": 20, "west": 8}


class Net(pl.LightningModule):
    """A network with batch norm and an optimiser with momentum, whose state must survive a kill."""

    def __init__(self, width: int, pause_s: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))
        self.pause_s = pause_s

    def training_step(self, batch, index):
        time.sleep(self.pause_s)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Cases(pl.LightningDataModule):
    """A site's cases, generated from its name."""

    def __init__(self, site: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(sum(site.encode()))
        features = torch.randn(SIZES.get(site, 10), 5, generator=generator)
        self.cases = TensorDataset(features, (features.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.cases, 4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.cases, 5)


def initial(settings: dict) -> Net:
    torch.manual_seed(1)
    return Net(settings["width"], settings.get("pause_s", 0.0))


def training(settings: dict) -> SiteConfig:
    return SiteConfig(epochs=settings["rounds"], seed=7, accelerator="cpu")


def plan(settings: dict) -> HubConfig:
    return HubConfig(
        rounds=settings["rounds"],
        sites=tuple(settings["sites"]),
        rule=FedAvg(),
        minimum=settings.get("minimum", len(settings["sites"])),
        deadline_s=settings.get("deadline_s"),
        study_digest=STUDY,
    )


def hub(settings: dict, folder: Path) -> None:
    record = msgspec.convert(settings["exchange"], union("exchange"))
    exchange = record.open_hub(STUDY, folder)
    (folder / "pid").write_text(str(os.getpid()))

    def watch(report) -> None:
        with (folder / "rounds").open("a") as file:
            answers = {answer.site: [answer.status, answer.reason] for answer in report.results}
            file.write(
                json.dumps({"round": report.round, "answers": answers, "seconds": report.seconds}) + "\n"
            )

    final = run_hub(
        plan(settings), exchange, weights_of(initial(settings)), folder=folder / "models", on_round=watch
    )
    (folder / "digest").write_text(digest(final.weights))


def site(settings: dict, folder: Path) -> None:
    record = msgspec.convert(settings["exchange"], union("exchange"))
    exchange = record.open_site(STUDY, settings["site"], folder)
    name = settings["site"]
    train_site(
        name,
        initial(settings),
        Cases(name),
        exchange,
        training(settings),
        SiteRun(folder, resume=True),
    )
    exchange.close()
    (folder / "done").touch()


def run(kind: str, settings: str) -> None:
    given = json.loads(Path(settings).read_text())
    folder = Path(given["folder"])
    with (folder / "log").open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    {"hub": hub, "site": site}[kind](given, folder)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
