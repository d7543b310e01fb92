"""An epoch of so many steps: passes that go on over epochs, the same at a resume, equal at
hospitals of unlike size.
"""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from medfed.data.datamodule import SiteDataModule
from medfed.data.samplers import FixedStepBatchSampler
from medfed.data.settings import Table
from medfed.errors import DataError
from medfed.federation.training_seed import seed_epoch


def epochs(batches: FixedStepBatchSampler, numbers: range) -> list[list[int]]:
    result = []
    for number in numbers:
        batches.sampler.set_epoch(number)
        result += list(batches)
    return result


def test_passes_visit_each_item_once_and_go_on_where_an_epoch_stopped():
    # 10 items in batches of 4 are passes of 4, 4 and 2; five epochs of 6 steps are ten passes.
    result = epochs(FixedStepBatchSampler(10, 4, 6, "s"), range(5))
    assert [len(batch) for batch in result] == [4, 4, 2] * 10
    passes = [[item for batch in result[start : start + 3] for item in batch] for start in range(0, 30, 3)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 10  # each in an order of its own
    # An epoch that does not divide a pass: the next one continues it.
    assert epochs(FixedStepBatchSampler(10, 4, 5, "s"), range(6)) == result


def test_an_epoch_follows_from_its_number_alone():
    whole = epochs(FixedStepBatchSampler(7, 2, 5, "s"), range(4))
    assert epochs(FixedStepBatchSampler(7, 2, 5, "s"), range(2, 4)) == whole[10:]
    assert epochs(FixedStepBatchSampler(7, 2, 5, "other"), range(4)) != whole
    assert len(FixedStepBatchSampler(7, 2, 5, "s")) == 5


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,split\n" + "".join(f"{n},{n % 2},train\n" for n in range(7)))
    settings = Table(features=("x",), target="y", standardise="none")
    return SiteDataModule.open(
        tmp_path / "a.csv", settings, "table", site_secret=b"k", batch=2, steps=5, seed=1
    )


class Sees(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.seen: list[float] = []

    def training_step(self, batch, index):
        self.seen += batch["features"][:, 0].tolist()
        return (self.w * 0).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Seeded(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        seed_epoch(trainer, 3, "a")


def trained(site, epochs: int, tmp_path=None, resume=None) -> list[float]:
    module = Sees()
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[Seeded()], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=site, ckpt_path=resume)
    if tmp_path is not None:
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    return module.seen


def test_a_trainer_counts_epochs_by_steps_and_a_resumed_one_sees_the_same_cases(site, tmp_path):
    # 7 cases in batches of 2 are 4 batches a pass; 4 epochs of 5 steps are 20 batches: five whole passes.
    whole = trained(site, 4)
    assert len(whole) == 5 * 7
    for start in range(0, 35, 7):
        assert sorted(whole[start : start + 7]) == list(range(7))
    begun = trained(site, 2, tmp_path)
    assert begun + trained(site, 4, resume=tmp_path / "last.ckpt") == whole


def test_several_processes_are_refused(site):
    class Two:
        world_size = 2

    site.trainer = Two()
    with pytest.raises(DataError, match="steps counts the batches of one process, and this site trains in 2"):
        site.train_dataloader()
