"""How items become batches, also for epochs of a fixed number of steps, whatever a site's number of cases."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from medfed.errors import DataError

# What a batch or an item is: tensors and tokens by key.
Batch = dict[str, Any]


class EpochSampler(Sampler[int]):
    """Holds the epoch that Lightning sets at its start; `FixedStepBatchSampler` orders the items."""

    def __init__(self, items: int) -> None:
        self.items = items
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.items))

    def __len__(self) -> int:
        return self.items


class FixedStepBatchSampler(Sampler[list[int]]):
    """Batches of item numbers, `steps` per epoch; each epoch continues the pass where the last one stopped.

    Every pass visits each item once, in an order of its own, and ends with a smaller batch if the batch size
    does not divide the number of items. An epoch's batches follow from `seed` and the epoch's number alone,
    so a resumed run repeats them. Hospitals of different sizes then do the same number of steps between two
    merges, as McMahan (2017) and FLamby count them.
    """

    def __init__(self, items: int, batch: int, steps: int, seed: str) -> None:
        self.sampler = EpochSampler(items)  # Lightning sets the epoch on the attribute of this name
        self.batch_size = batch
        self.drop_last = False
        self.steps = steps
        self.seed: int | str = seed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        items, size = self.sampler.items, self.batch_size
        batches_per_pass = -(-items // size)
        first = self.sampler.epoch * self.steps
        order: list[int] = []
        for number in range(first, first + self.steps):
            number_of_pass, position = divmod(number, batches_per_pass)
            if not order or position == 0:
                order = random.Random(f"{self.seed}/{number_of_pass}").sample(range(items), items)
            yield order[position * size : (position + 1) * size]


def collate(items: list[Batch]) -> Batch:
    """Return a batch: tensors stacked, tokens listed.

    Raises:
        DataError: for images of different sizes.
    """
    batch: Batch = {}
    for key, first in items[0].items():
        values = [item[key] for item in items]
        if isinstance(first, torch.Tensor):
            if any(value.shape != first.shape for value in values):
                raise DataError("the cases of a batch differ in size; set data.patch, or train.batch to 1")
            batch[key] = torch.stack(values)
        else:
            batch[key] = values
    return batch
