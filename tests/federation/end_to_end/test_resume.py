"""A run that dies goes on from the last merged round and ends with the bytes of one that was never "
"disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from simulated import simulated
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.federation import training_seed
from medfed.federation.config import SiteConfig
from medfed.federation.site import SiteRun, train_site
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.weights import digest, weights_of

ROUNDS, EPOCHS = 4, 2


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2)
        )

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimiser = torch.optim.AdamW(self.parameters(), lr=0.02)
        return [optimiser], [torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, ROUNDS * EPOCHS)]


class Data(pl.LightningDataModule):
    def __init__(self, site: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(sum(site.encode()))
        features = torch.randn(16, 5, generator=generator)
        self.rows = TensorDataset(features, (features.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, 4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows, 8)


class Dies(pl.Callback):
    """Ends the process's share of a site at one batch of one epoch, as kill -9 would: nothing is tidied "
    "up."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise RuntimeError("killed")


class DiesBeforeItKeeps(Dies):
    """Dies when a round's model has been received and nothing of that round is on this site's disk yet."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pass

    def on_validation_start(self, trainer, pl_module):
        if trainer.state.fn == "fit" and trainer.current_epoch == self.epoch:
            raise RuntimeError("killed")


def run(
    folder,
    *,
    how=Dies,
    dies: int | None = None,
    resume: bool = False,
    state: str = "keep",
    names=("north", "south"),
    checkpoint_s: float | None = None,
    **shared,
):
    def site(name):
        def work(exchange):
            torch.manual_seed(7)
            train_site(
                name,
                Net(),
                Data(name),
                exchange,
                SiteConfig(
                    ROUNDS * EPOCHS, EPOCHS, seed=3, optimiser_state=state, accelerator="cpu", **shared
                ),
                SiteRun(
                    folder / name,
                    resume,
                    callbacks=[how(dies)] if dies is not None and name == "south" else [],
                    checkpoint_s=checkpoint_s,
                ),
            )

        return work

    torch.manual_seed(7)
    return simulated(
        {name: site(name) for name in names},
        weights_of(Net()),
        rule=FedAvg(),
        rounds=ROUNDS,
        minimum=len(names),
        seed=3,
        folder=folder / "hub",
        **shared,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return digest(run(tmp_path_factory.mktemp("undisturbed")).weights)


def test_the_same_seed_gives_the_same_bytes_twice(tmp_path, undisturbed):
    assert digest(run(tmp_path).weights) == undisturbed


@pytest.mark.parametrize("dies", [0, 2, 5])
def test_a_resumed_run_ends_with_the_bytes_of_an_undisturbed_one(tmp_path, undisturbed, dies):
    with pytest.raises(medfed.QuorumError, match="south: absent"):
        run(tmp_path, dies=dies)
    assert digest(run(tmp_path, resume=True).weights) == undisturbed


@pytest.mark.parametrize("dies", [1, 3, 5])
def test_a_site_that_was_a_round_behind_the_hub_trains_that_round_again(tmp_path, undisturbed, dies):
    with pytest.raises(medfed.QuorumError, match="south: absent"):
        run(tmp_path, how=DiesBeforeItKeeps, dies=dies)
    assert digest(run(tmp_path, resume=True).weights) == undisturbed


THREE = {"names": ("east", "north", "south"), "privacy": SecureSum()}


def secrets_drawn(monkeypatch, run: str) -> None:
    """Let each site's secret be this one with the name of its thread, instead of a new one."""
    name = threading.current_thread
    monkeypatch.setattr(training_seed.secrets, "token_hex", lambda count: f"{run} {name().name}")


def test_under_a_sum_no_second_run_has_the_same_randomness(tmp_path):
    first, second = (digest(run(tmp_path / name, **THREE).weights) for name in ("a", "b"))
    assert first != second


@pytest.mark.parametrize("dies", [0, 5])
def test_under_a_sum_a_resumed_run_goes_on_with_its_own_secret(tmp_path, monkeypatch, dies):
    secrets_drawn(monkeypatch, "first")
    undisturbed = digest(run(tmp_path / "a", **THREE).weights)
    secrets_drawn(monkeypatch, "first")
    with pytest.raises(medfed.QuorumError, match="2 of 3 sites showed keys"):
        run(tmp_path / "b", dies=dies, **THREE)
    secrets_drawn(monkeypatch, "another")
    assert digest(run(tmp_path / "b", resume=True, **THREE).weights) == undisturbed


def test_another_seed_gives_other_bytes(tmp_path, undisturbed):
    def with_reset():
        return run(tmp_path, state="reset")

    assert digest(with_reset().weights) != undisturbed


def test_a_full_disk_at_the_hub_is_an_error_and_the_run_resumes(tmp_path, undisturbed, monkeypatch):
    from medfed.federation import checkpoints

    real = checkpoints.encoding.safetensors_pieces

    def full(tensors, metadata):
        if metadata.get("round") == "2":
            raise OSError(28, "No space left on device")
        return real(tensors, metadata)

    monkeypatch.setattr(checkpoints.encoding, "safetensors_pieces", full)
    with pytest.raises(
        medfed.MedfedError, match="round 2: its checkpoint could not be written: No space left on device"
    ):
        run(tmp_path)
    monkeypatch.setattr(checkpoints.encoding, "safetensors_pieces", real)
    assert digest(run(tmp_path, resume=True).weights) == undisturbed


# ------------------------------------------------------------------------- a checkpoint inside a round


class Counts(pl.Callback):
    """Notes the epochs that a site begins."""

    def __init__(self) -> None:
        self.begun: list[int] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.begun.append(trainer.current_epoch)


def resumed_inside(folder, dies: int, **shared) -> str:
    """Return the digest of a run whose site was killed and went on without the epochs that it had kept."""
    counts = Counts()
    final = run(folder, how=lambda _: counts, dies=dies, resume=True, checkpoint_s=0.0, **shared)
    assert counts.begun == list(range(dies, ROUNDS * EPOCHS))
    return digest(final.weights)


@pytest.mark.parametrize("dies", [1, 3, 7])
def test_a_site_goes_on_after_its_last_local_epoch_with_the_same_bits(tmp_path, undisturbed, dies):
    with pytest.raises(medfed.QuorumError, match="south: absent"):
        run(tmp_path, dies=dies, checkpoint_s=0.0)
    assert resumed_inside(tmp_path, dies) == undisturbed


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
import test_resume

torch.set_num_threads(int(sys.argv[2]))  # as the process that goes on, for the same bits

class Dies(test_resume.Dies):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)

test_resume.run(Path(sys.argv[1]), how=Dies, dies=3, checkpoint_s=0.0)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_inside_a_round_goes_on_there(tmp_path, undisturbed):
    places = [str(Path(__file__).parent), *sys.path]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(torch.get_num_threads())],
        capture_output=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert resumed_inside(tmp_path, 3) == undisturbed


def test_inside_a_round_a_sum_goes_on_with_its_own_secret(tmp_path, monkeypatch):
    secrets_drawn(monkeypatch, "first")
    undisturbed = digest(run(tmp_path / "a", **THREE).weights)
    secrets_drawn(monkeypatch, "first")
    with pytest.raises(medfed.QuorumError, match="2 of 3 sites showed keys"):
        run(tmp_path / "b", dies=3, checkpoint_s=0.0, **THREE)
    secrets_drawn(monkeypatch, "another")
    assert resumed_inside(tmp_path / "b", 3, **THREE) == undisturbed
