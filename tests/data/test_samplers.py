"""An epoch of so many steps: passes that go on over epochs, the same at a resume, equal at
hospitals of unlike size.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import RandomSampler

from medfed.data.datamodule import SiteDataModule
from medfed.data.samplers import FixedStepBatchSampler, LastRoundsSampler
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


def order(seed: str, number: int, items: int = 5) -> list[int]:
    """Return the order of one pass, as the docstrings give it: a permutation from seed and pass."""
    return random.Random(f"{seed}/{number}").sample(range(items), items)


def test_before_the_last_rounds_items_are_shuffled_as_a_loader_shuffles_them():
    sampler = LastRoundsSampler([0, 1, 3], 5, "s")
    torch.manual_seed(4)
    drawn = [list(sampler), list(sampler)]
    torch.manual_seed(4)
    shuffled = RandomSampler(range(3))  # of places: a loader that shuffles has one
    assert drawn == [[[0, 1, 3][place] for place in shuffled] for _ in range(2)]
    assert sampler.drawable == [0, 1, 3]


def test_an_epoch_of_the_last_rounds_draws_as_many_of_all_items_pass_after_pass():
    # 3 of 5 items train: epochs of 3 are items 0-2, 3-5, 6-8 ... of one pass over 5 after another.
    sampler = LastRoundsSampler([0, 1, 3], 5, "s")
    passes = order("s", 0) + order("s", 1) + order("s", 2)
    for epoch in (0, 1, 2, 3, 4, 1):  # each follows from its number alone
        sampler.train_on_all(epoch)
        assert (len(sampler), list(sampler)) == (3, passes[3 * epoch : 3 * epoch + 3])
    assert sampler.drawable == [0, 1, 2, 3, 4]


def test_no_item_is_drawn_more_than_once_oftener_than_another():
    sampler, drawn = LastRoundsSampler(range(4), 7, "s"), Counter(range(7))
    for epoch in range(20):
        sampler.train_on_all(epoch)
        drawn.update(sampler)
        assert max(drawn.values()) - min(drawn.values()) <= 1


def test_fixed_steps_of_the_last_rounds_begin_a_pass_over_all_items():
    batches = FixedStepBatchSampler([0, 1, 3], 2, 2, "s", 5)
    assert sorted(item for batch in epochs(batches, range(1)) for item in batch) == [0, 1, 3]
    found = []
    for epoch in range(3):
        batches.sampler.set_epoch(40 + epoch)  # as Lightning does
        batches.train_on_all(epoch)
        found += list(batches)
    first, second = order("s", 0), order("s", 1)
    assert found == [first[:2], first[2:4], first[4:], second[:2], second[2:4], second[4:]]


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
