"""One hospital's training: its Trainer, its files, its own models, and what it refuses, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from medfed.errors import PrivacyError, RunError, StorageError
from medfed.federation.config import SiteConfig
from medfed.federation.site import (
    LOCAL,
    PERSONAL,
    SiteRun,
    _load_initial,
    _require_intact,
    personalise,
    train_alone,
    train_site,
    trainer_of,
)
from medfed.local_training.fine_tune import FineTune
from medfed.privacy.client_dp import ClientDP
from medfed.privacy.dp_sgd import DPSGD
from medfed.wire.weights import weights_of

RATE, STEPS = 0.1, 3


class Quadratic(pl.LightningModule):
    """The loss (w - 2)^2 / 2 in every step, so that w moves a tenth of its way to 2; the head is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.head = nn.Linear(1, 1, bias=False).requires_grad_(False)
        nn.init.constant_(self.head.weight, 7.0)

    def training_step(self, batch, index):
        return ((self.w - 2.0) ** 2).sum() / 2

    def validation_step(self, batch, index):
        self.log("val/loss", ((self.w.detach() - 2.0) ** 2).sum())

    def configure_optimizers(self):
        optimiser = torch.optim.SGD([self.w], lr=RATE)
        return [optimiser], [torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.1)]


class Steps(pl.LightningDataModule):
    """Three training steps per epoch, and one of validation; counts the passes over the latter."""

    validations = 0

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(STEPS, 1)), 1)

    def val_dataloader(self):
        self.validations += 1
        return DataLoader(TensorDataset(torch.zeros(1, 1)), 1)


def trained(w: float, rates: list[float]) -> float:
    """Return the weight after one epoch with each of these learning rates."""
    for rate in rates:
        for _ in range(STEPS):
            w -= rate * (w - 2.0)
    return w


def config(epochs: int, **settings) -> SiteConfig:
    return SiteConfig(epochs, accelerator="cpu", **settings)


def test_a_site_alone_trains_its_epochs_and_validates_nothing(tmp_path: Path) -> None:
    module, data = Quadratic(), Steps()
    train_alone("north", module, data, config(2), folder=tmp_path)
    assert module.w.item() == pytest.approx(trained(0.0, [RATE, RATE / 10]), rel=1e-12)
    assert data.validations == 0
    assert list(tmp_path.iterdir()) == []


def test_a_trainer_has_the_settings_of_the_site_and_writes_nothing_itself(tmp_path: Path) -> None:
    settings = config(6, local_epochs=3, clip=0.5, accumulate=4, precision="bf16-mixed")
    trainer = trainer_of(settings, tmp_path, [])
    assert (trainer.max_epochs, trainer.check_val_every_n_epoch) == (6, 3)
    assert (trainer.gradient_clip_val, trainer.accumulate_grad_batches) == (0.5, 4)
    assert trainer.precision == "bf16-mixed"
    assert (trainer.checkpoint_callbacks, trainer.loggers) == ([], [])
    assert trainer_of(settings, tmp_path, [], validate=False).limit_val_batches == 0


class Federated:
    """What `personalise` asks of the callback: a site, and its own weights if the method keeps some."""

    site = "north"

    def __init__(self, own=None) -> None:
        self.own = own

    def personalised_weights(self, module):
        return self.own


def personalised(folder: Path, own=None, **settings) -> tuple[dict[str, float], Quadratic]:
    module = Quadratic()
    return personalise(module, Steps(), config(1, **settings), Federated(own), folder), module  # type: ignore[arg-type]


def test_without_a_personal_model_nothing_is_saved_or_scored(tmp_path: Path) -> None:
    scores, _ = personalised(tmp_path)
    assert scores == {}
    assert list(tmp_path.iterdir()) == []


def test_layers_that_stay_are_saved_and_the_model_with_them_scored(tmp_path: Path) -> None:
    scores, module = personalised(tmp_path, keep_local=("head",))
    assert {name: float(t) for name, t in load_file(tmp_path / LOCAL).items()} == {"head.weight": 7.0}
    assert {name: float(t) for name, t in load_file(tmp_path / PERSONAL).items()} == {
        "w": 0.0,
        "head.weight": 7.0,
    }
    assert scores == {"val/personal/loss": 4.0}
    assert module.w.item() == 0.0


def test_a_methods_own_model_is_scored_and_the_shared_one_left_as_it_was(tmp_path: Path) -> None:
    own = {**weights_of(Quadratic()), "w": torch.tensor([1.0], dtype=torch.float64)}
    scores, module = personalised(tmp_path, own)
    assert scores == {"val/personal/loss": 1.0}
    assert float(load_file(tmp_path / PERSONAL)["w"]) == 1.0
    assert module.w.item() == 0.0


def test_fine_tuning_has_a_constant_share_of_the_initial_rate(tmp_path: Path) -> None:
    scores, module = personalised(tmp_path, local=FineTune(epochs=2, rate=0.5))
    w = trained(0.0, [RATE / 2, RATE / 2])  # the schedule would divide the second epoch's rate by 10
    assert float(load_file(tmp_path / PERSONAL)["w"]) == pytest.approx(w, rel=1e-12)
    assert scores["val/personal/loss"] == pytest.approx((w - 2.0) ** 2, rel=1e-6)
    assert module.w.item() == 0.0


@pytest.mark.parametrize(
    "privacy", [DPSGD(), ClientDP(where="site", noise_multiplier=1.0)], ids=["dp_sgd", "client_dp"]
)
def test_private_training_without_a_ledger_is_refused_before_the_hub_is_asked(
    tmp_path: Path, privacy
) -> None:
    with pytest.raises(PrivacyError, match=r"keeps a ledger for each patient; give SiteRun\(patients="):
        # No exchange: nothing may be fetched before the refusal.
        train_site("north", Quadratic(), Steps(), None, config(1, privacy=privacy), SiteRun(tmp_path))  # type: ignore[arg-type]


class Global:
    """What the checkpoint saver asks of the callback."""

    site, round, model_sha256, secret_seed = "north", 4, "ab" * 32, "a secret"


def saver(run: SiteRun, local_epochs: int = 1):
    from medfed.federation.site import _CheckpointSaver

    return _CheckpointSaver(run, Global(), local_epochs)  # type: ignore[arg-type]


def test_the_model_that_a_site_began_with_is_kept_until_its_first_checkpoint(tmp_path: Path) -> None:
    run, module = SiteRun(tmp_path), Quadratic()
    trainer = trainer_of(config(2, local_epochs=2), tmp_path, [saver(run, 2)])
    trainer.fit(module, datamodule=Steps())
    again = Quadratic()
    again.w.data.fill_(5.0)
    assert _load_initial(run.initial, again, "north") == (4, "ab" * 32, "a secret")
    assert again.w.item() == 0.0
    saved = torch.load(run.checkpoint, weights_only=True)
    assert saved["epoch"] == 1  # one per merge, after the second epoch
    assert float(saved["state_dict"]["w"]) == module.w.item()
    assert run.checkpoint.stat().st_mode & 0o777 == 0o600
    run.initial.unlink()
    trainer_of(config(2), tmp_path, [saver(run)]).fit(Quadratic(), datamodule=Steps())
    assert not run.initial.exists()


@pytest.mark.parametrize(("seconds", "saved_after"), [(None, [1, 3]), (0.0, [0, 1, 2, 3]), (3600.0, [1, 3])])
def test_inside_a_round_a_checkpoint_is_saved_once_the_last_is_old(tmp_path, seconds, saved_after) -> None:
    run, epochs = SiteRun(tmp_path, checkpoint_s=seconds), []
    trainer = trainer_of(config(4, local_epochs=2), tmp_path, [saver(run, 2)])
    real = trainer.save_checkpoint

    def noted(*args, **settings):
        epochs.append(trainer.current_epoch)
        real(*args, **settings)

    trainer.save_checkpoint = noted  # type: ignore[method-assign]
    trainer.fit(Quadratic(), datamodule=Steps())
    assert epochs == saved_after


@pytest.mark.parametrize(
    ("epochs", "where"), [(1, "after 1 of its 2 local epochs"), (2, "from its beginning")]
)
def test_a_site_that_goes_on_says_where(tmp_path, epochs, where) -> None:
    told: list[str] = []
    first = SiteRun(tmp_path, checkpoint_s=0.0, log=told.append)
    trainer_of(config(epochs, local_epochs=2), tmp_path, [saver(first, 2)]).fit(
        Quadratic(), datamodule=Steps()
    )
    assert told == []
    again = SiteRun(tmp_path, resume=True, log=told.append)
    trainer_of(config(4, local_epochs=2), tmp_path, [saver(again, 2)]).fit(
        Quadratic(), datamodule=Steps(), ckpt_path=again.checkpoint
    )
    assert told == [f"site 'north' goes on in round 5, {where}"]


def test_a_full_disk_is_told_with_what_is_free_and_leaves_no_part(tmp_path: Path, monkeypatch) -> None:
    run = SiteRun(tmp_path)
    trainer = trainer_of(config(1), tmp_path, [saver(run)])

    def full(path, weights_only):
        Path(path).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed")

    monkeypatch.setattr(trainer, "save_checkpoint", full)
    message = (
        r"checkpoint could not be written \(RuntimeError, .* free in the run folder\); free disk space and"
    )
    with pytest.raises(StorageError, match=message):
        trainer.fit(Quadratic(), datamodule=Steps())
    assert [path.name for path in tmp_path.iterdir()] == [run.initial.name]


def test_a_checkpoint_with_one_changed_bit_is_refused(tmp_path: Path) -> None:
    run = SiteRun(tmp_path)
    torch.save({"state_dict": {"w": torch.ones(1000)}, "step": 3}, run.checkpoint)
    _require_intact(run, "north")
    data = bytearray(run.checkpoint.read_bytes())
    place = data.index(torch.ones(1000).numpy().tobytes())
    data[place + 402] ^= 0x40
    run.checkpoint.write_bytes(bytes(data))
    # torch itself reads another number there.
    assert float(torch.load(run.checkpoint)["state_dict"]["w"][100]) != 1.0
    with pytest.raises(
        RunError, match=r"site 'north': its checkpoint last\.ckpt is damaged; restore it from"
    ):
        _require_intact(run, "north")
