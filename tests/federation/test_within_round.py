"""A checkpoint from inside a round: what its update is the difference to, and what goes with it, by hand."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from simulated import simulated
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import RunError
from medfed.federation import callback, within_round
from medfed.federation.callback import FederatedCallback
from medfed.federation.examples import Pass
from medfed.federation.within_round import RoundProgress

STEPS, EPOCHS, ROUNDS = 3, 2, 2


class Counter(pl.LightningModule):
    """One weight that grows by 1 in every step, so that a round of six steps makes a difference of 6.

    The loss before a step is the weight's value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        return {"loss": -self.weight.sum() + 2 * self.weight.detach().sum()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Dies(pl.Callback):
    """Ends a site at the first batch of its second epoch, in the middle of the first round."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 2:
            raise RuntimeError("killed")


def run(folder, keeper, *more, checkpoint=None):
    """Train one site of one's own script; the hub resumes."""

    rows = DataLoader(TensorDataset(torch.zeros(STEPS, 1)), 1)

    def fit(exchange):
        federated = FederatedCallback("north", exchange, EPOCHS)
        pl.Trainer(
            max_epochs=ROUNDS * EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[federated, keeper, *more],
        ).fit(Counter(), rows, ckpt_path=checkpoint)  # fmt: skip

    return simulated(
        {"north": fit}, {"weight": torch.zeros(1)}, rule=FedAvg(), rounds=ROUNDS, folder=folder / "hub"
    )


@pytest.fixture
def sent(monkeypatch):
    """What the site hands to `send_update`: the difference, and its numbers."""
    seen: list = []
    real = callback.send_update

    def noted(connection, update, *rest):
        seen.append((update.delta["weight"].item(), dict(update.scalars)))
        return real(connection, update, *rest)

    monkeypatch.setattr(callback, "send_update", noted)
    return seen


# At the end of the first epoch, and after two of the second's three batches: as a user's own ModelCheckpoint
# would, neither knows of rounds.
AT = {
    "epoch": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    "batch": {"every_n_train_steps": 5},
}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("at", AT)
def test_the_difference_is_to_the_model_that_the_round_began_with(tmp_path, sent, at):
    def keeper():
        return ModelCheckpoint(dirpath=tmp_path / "kept", filename=at, save_top_k=-1, **AT[at])

    with pytest.raises(medfed.QuorumError):
        run(tmp_path, keeper(), Dies())
    assert sent == []
    final = run(tmp_path, keeper(), checkpoint=tmp_path / "kept" / f"{at}.ckpt")
    first, second = sent
    # Not 3 (or 1), the difference to the restored weights.
    assert (first[0], second[0], final.weights["weight"].item()) == (6.0, 6.0, 12.0)
    # All six steps of the round count, with the mean of the losses 0 to 5.
    assert (first[1]["train/steps"], first[1]["train/loss"], first[1]["train/rate"]) == (6, 2.5, 1.0)
    assert (second[1]["train/steps"], second[1]["train/loss"]) == (6, 8.5)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_changed_model_in_a_checkpoint_is_refused_and_nothing_sent(tmp_path, sent):
    keeper = ModelCheckpoint(dirpath=tmp_path / "kept", filename="epoch", **AT["epoch"])
    with pytest.raises(medfed.QuorumError):
        run(tmp_path, keeper, Dies())
    saved = torch.load(tmp_path / "kept" / "epoch.ckpt", weights_only=True)
    saved["callbacks"]["FederatedCallback"]["within"]["weights"]["weight"] += 1
    torch.save(saved, tmp_path / "changed.ckpt")
    with pytest.raises(medfed.QuorumError) as ended:
        run(tmp_path, keeper, checkpoint=tmp_path / "changed.ckpt")
    refused = ended.value.__cause__
    assert isinstance(refused, RunError)
    assert "its checkpoint holds the model from which round 1 trains" in str(refused)
    assert "the file is damaged" in str(refused)
    assert sent == []


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("at", AT)
def test_a_checkpoint_of_an_earlier_medfed_from_inside_a_round_is_refused(tmp_path, sent, at):
    keeper = ModelCheckpoint(dirpath=tmp_path / "kept", filename=at, save_top_k=-1, **AT[at])
    with pytest.raises(medfed.QuorumError):
        run(tmp_path, keeper, Dies())
    saved = torch.load(tmp_path / "kept" / f"{at}.ckpt", weights_only=True)
    del saved["callbacks"]["FederatedCallback"]["within"]
    torch.save(saved, tmp_path / "older.ckpt")
    with pytest.raises(medfed.QuorumError) as ended:
        run(tmp_path, keeper, checkpoint=tmp_path / "older.ckpt")
    assert "written inside a round by an earlier medfed" in str(ended.value.__cause__)
    assert sent == []


def test_a_round_is_kept_and_read_back():
    progress = RoundProgress([torch.tensor(1.0), torch.tensor(4.0)], 2, 0.75, {"train/loss_before": 5.0})
    progress.under_way = True
    received = {"w": torch.tensor([1.0, 2.0], dtype=torch.bfloat16), "n": torch.tensor(3.0)}
    kept = within_round.kept_of(progress, received, Pass(2, 8))
    assert within_round.received_of(kept, "north", 0).keys() == received.keys()
    again, seen = within_round.progress_of(kept)
    assert seen == Pass(2, 8)
    assert again.under_way
    scalars = again.scalars()
    assert scalars.pop("train/seconds") >= kept["seconds"]
    assert scalars == {
        "train/steps": 2.0, "train/loss": 2.5, "train/rate": 0.375, "train/loss_before": 5.0
    }  # fmt: skip


def test_what_was_on_a_gpu_goes_back_there_and_the_rest_stays():
    # A stand-in for a GPU, which the tests' machine lacks.
    state = {"personal": {"w": torch.ones(2, device="meta")}, "moments": {"w:step": torch.tensor(3.0)}}
    names = within_round.names_on_accelerator(state)
    assert names == {"personal": ["w"], "moments": []}
    read = {"personal": {"w": torch.ones(2)}, "moments": {"w:step": torch.tensor(3.0)}}
    moved = within_round.on_device(read, names, torch.device("meta"))
    assert moved["personal"]["w"].device.type == "meta"
    assert moved["moments"]["w:step"].device.type == "cpu"
