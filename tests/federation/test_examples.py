"""The examples of an update are counted from what a site trained on."""

from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch
from monai.data import GridPatchDataset, PatchDataset, SmartCacheDataset
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import medfed
from medfed.federation.callback import FederatedCallback
from medfed.federation.examples import batch_size, distinct_cases
from medfed.wire.weights import weights_of


class Mean(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, index):
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(batch) if isinstance(leaf, torch.Tensor)]
        return sum(((self.w - leaf.float()).square().mean() for leaf in leaves), self.w * 0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def stated(data, module=Mean, *, rounds=1, epochs=1, callback=None, **settings) -> list[int]:
    """Return the examples that one site states in each round."""
    reports = []

    def fit(exchange):
        federated = FederatedCallback("a", exchange, epochs, **(callback or {}))
        trainer = pl.Trainer(
            max_epochs=rounds * epochs, callbacks=[federated], logger=False, enable_checkpointing=False,
            accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **settings,
        )  # fmt: skip
        trainer.fit(module(), data)

    medfed.run_federation(
        {"a": fit}, weights_of(Mean()), rule="fedavg", rounds=rounds, on_round=reports.append
    )
    return [report.results[0].examples for report in reports[:-1]]


def rows(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(float(count)))


class Stream(IterableDataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        return iter(torch.arange(float(self.count)))


class Sized(Stream):
    def __len__(self):
        return self.count


class Declaring(Dataset):
    """Twelve slices of three patients."""

    federated_examples = 3

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor(float(index))


class Crops(Dataset):
    """Seven cases, of each of which an item holds two crops."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return torch.full((2, 3), float(index))


IMAGES = [torch.full((1, 4, 4), float(value)) for value in range(6)]


def quarters(image):
    return [image[:, x : x + 2, y : y + 2] for x in (0, 2) for y in (0, 2)]


def grid(image):
    return ((patch, 0) for patch in quarters(image))


@pytest.mark.parametrize(
    "loader, settings, expected",
    [
        (lambda: DataLoader(rows(10), 4), {}, 10),
        (lambda: DataLoader(rows(10), 4, drop_last=True), {}, 8),
        (lambda: DataLoader(rows(10), 4), {"limit_train_batches": 2}, 8),
        (lambda: DataLoader(rows(100), 4), {"limit_train_batches": 0.5}, 48),
        (lambda: DataLoader(rows(100), 5, sampler=SubsetRandomSampler(range(10))), {}, 10),
        (lambda: DataLoader(Subset(rows(100), range(10)), 5), {}, 10),
        (lambda: DataLoader(Subset(rows(100), [0, 0, 1]), 5), {}, 2),
        # 40 draws of 10 cases, of which three can't be drawn.
        (lambda: DataLoader(rows(10), 5, sampler=WeightedRandomSampler([0] * 3 + [1] * 7, 40)), {}, 7),
        (lambda: DataLoader(rows(10), 5, sampler=RandomSampler(rows(10), num_samples=5)), {}, 5),
        (
            lambda: DataLoader(rows(9), batch_sampler=BatchSampler(SequentialSampler(rows(9)), 4, False)),
            {},
            9,
        ),
        (lambda: DataLoader(ConcatDataset([rows(3), rows(4)]), 2), {}, 7),
        # One dataset five times: its cases are drawn more often, and are no more of them.
        (lambda: DataLoader(ConcatDataset([rows(3)] * 5), 3), {}, 3),
        (lambda: DataLoader(Declaring(), 4), {}, 3),
        # Crops are no cases: each batch of 2 holds 4 rows.
        (lambda: DataLoader(Crops(), 2, collate_fn=torch.cat), {}, 7),
        (lambda: DataLoader(rows(6), None), {}, 6),
        (lambda: DataLoader(Stream(11), 4), {}, 11),
        (lambda: DataLoader(Sized(11), 4), {"limit_train_batches": 2}, 8),
        (lambda: DataLoader(PatchDataset(IMAGES, quarters, 4), 3), {}, 6),
        # 12 of 24 patches are half of the images.
        (lambda: DataLoader(PatchDataset(IMAGES, quarters, 4), 3), {"limit_train_batches": 4}, 3),
        (lambda: DataLoader(GridPatchDataset(IMAGES, grid, with_coordinates=False), 3), {}, 6),
        (lambda: {"a": DataLoader(rows(10), 4), "b": DataLoader(rows(5), 4)}, {}, 15),
        (lambda: [DataLoader(rows(10), 4), DataLoader(Declaring(), 4)], {}, 13),
        (lambda: CombinedLoader([DataLoader(rows(8), 2), DataLoader(rows(4), 2)], "min_size"), {}, 8),
    ],
)
def test_examples_are_the_cases_that_were_trained_on(loader, settings, expected):
    assert stated(loader(), **settings) == [expected]


def test_one_dataset_behind_two_loaders_counts_once():
    data = rows(10)
    assert stated([DataLoader(data, 5), DataLoader(data, 5, shuffle=True)]) == [10]


def test_smart_cache_stands_for_all_of_its_cases():
    data = SmartCacheDataset(
        [torch.tensor(float(value)) for value in range(10)], replace_rate=0.5, cache_num=4, progress=False
    )
    assert len(data) == 4
    assert stated(DataLoader(data, 2)) == [10]


def test_a_queue_of_patches_stands_for_its_subjects():
    queue = type("Queue", (Declaring,), {"__module__": "torchio.data.queue", "federated_examples": None})()
    queue.subjects_dataset = rows(5)
    assert distinct_cases(queue) == 5
    assert stated(DataLoader(queue, 4)) == [5]


def test_a_module_or_data_module_that_says_its_cases_is_believed():
    class Told(Mean):
        federated_examples = 4

    class Data(pl.LightningDataModule):
        federated_examples = 2

        def train_dataloader(self):
            return DataLoader(rows(10), 5)

    assert stated(DataLoader(rows(10), 5), Told) == [4]
    assert stated(Data()) == [2]


def test_examples_that_are_given_are_sent_and_compared(caplog):
    loader = DataLoader(rows(100), 5, sampler=SubsetRandomSampler(range(10)))
    assert stated(loader, callback={"examples": 100}) == [100]
    assert "states 100 examples, and trained on 10 in a pass" in caplog.text
    caplog.clear()
    assert stated(loader, callback={"examples": 10}) == [10]
    assert "states" not in caplog.text


def test_epochs_between_merges_count_once():
    assert stated(DataLoader(rows(10), 4), rounds=2, epochs=3) == [10, 10]


def test_a_growing_count_stays_within_what_the_hub_takes():
    class Growing(Mean):
        federated_examples = property(lambda self: 10 if self.current_epoch == 0 else 40)

    assert stated(DataLoader(rows(40), 5), Growing, rounds=2) == [10, math.floor(10 * 1.1)]


@pytest.mark.parametrize(
    "batch, size",
    [
        (torch.zeros(3, 2), 3),
        (torch.tensor(1.0), 1),
        ({"id": ["a", "b"], "x": torch.zeros(2, 5)}, 2),
        ((torch.zeros(4, 2), torch.zeros(4)), 4),
        ([{"x": torch.zeros(1, 8, 8)}, {"x": torch.zeros(1, 8, 8)}], 2),
        (type("Graphs", (), {"num_graphs": 6})(), 6),
        (object(), 1),
    ],
)
def test_the_samples_of_a_batch(batch, size):
    assert batch_size(batch) == size
