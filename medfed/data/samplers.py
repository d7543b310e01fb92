"""How items become batches: epochs of a fixed number of steps, and last rounds on validation cases, too."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler

from medfed.errors import DataError

# What a batch or an item is: tensors and tokens by key.
Batch = dict[str, Any]


class EpochSampler(Sampler[int]):
    """Holds the epoch that Lightning sets at its start; `FixedStepBatchSampler` orders the items."""

    def __init__(self, items: Sequence[int]) -> None:
        self.items = items
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class FixedStepBatchSampler(Sampler[list[int]]):
    """Batches of item numbers, `steps` per epoch; each epoch continues the pass where the last one stopped.

    Every pass visits each item once, in an order of its own, and ends with a smaller batch if the batch size
    does not divide the number of items. An epoch's batches follow from `seed` and the epoch's number alone,
    so a resumed run repeats them. Hospitals of different sizes then do the same number of steps between two
    merges, as McMahan (2017) and FLamby count them.

    Args:
        items: how many items there are, or the numbers of those that train.
        batch: items of a batch.
        steps: batches of an epoch.
        seed: decides the order.
        every: how many items there are in all, for `train_on_all`.
    """

    def __init__(
        self, items: int | Sequence[int], batch: int, steps: int, seed: str, every: int | None = None
    ) -> None:
        numbers = range(items) if isinstance(items, int) else items
        self.sampler = EpochSampler(numbers)  # Lightning sets the epoch on the attribute of this name
        self.every = len(numbers) if every is None else every
        self.batch_size = batch
        self.drop_last = False
        self.steps = steps
        self.seed: int | str = seed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        items, size = self.sampler.items, self.batch_size
        batches_per_pass = -(-len(items) // size)
        first = self.sampler.epoch * self.steps
        order: list[int] = []
        for number in range(first, first + self.steps):
            number_of_pass, position = divmod(number, batches_per_pass)
            if not order or position == 0:
                order = _pass_order(items, self.seed, number_of_pass)
            yield order[position * size : (position + 1) * size]

    def train_on_all(self, epoch: int) -> None:
        """Draw from all items in the epoch that begins, the first of which is 0."""
        self.sampler.items, self.sampler.epoch = range(self.every), epoch


class LastRoundsSampler(Sampler[int]):
    """Item numbers of an epoch: a shuffle of those that train, and in the last rounds as many of all items.

    The epochs before the last rounds are those of `DataLoader(shuffle=True)`, bit for bit. From then on an
    epoch goes on with the pass where the last one stopped; every pass visits each item once, so that after
    any number of epochs no item was drawn more than once oftener than another. The items follow from `seed`
    and the epoch's number alone.

    Args:
        training: the numbers of the items that train from the first round on.
        every: how many items there are in all.
        seed: decides the order in the last rounds.
    """

    def __init__(self, training: Sequence[int], every: int, seed: str) -> None:
        self.training, self.every = training, every
        self.seed: int | str = seed
        self._epoch: int | None = None

    def __len__(self) -> int:
        return len(self.training)

    def __iter__(self) -> Iterator[int]:
        if self._epoch is None:
            return (self.training[place] for place in RandomSampler(self.training))
        return self._continued(self._epoch * len(self))

    def _continued(self, first: int) -> Iterator[int]:
        order: list[int] = []
        for number in range(first, first + len(self)):
            number_of_pass, position = divmod(number, self.every)
            if not order or position == 0:
                order = _pass_order(range(self.every), self.seed, number_of_pass)
            yield order[position]

    @property
    def drawable(self) -> list[int]:
        """The numbers of the items that an epoch draws from."""
        return list(self.training if self._epoch is None else range(self.every))

    def train_on_all(self, epoch: int) -> None:
        """Draw from all items in the epoch that begins, the first of which is 0."""
        self._epoch = epoch


def _pass_order(items: Sequence[int], seed: int | str, number: int) -> list[int]:
    """Return the items in the order of one pass."""
    return random.Random(f"{seed}/{number}").sample(items, len(items))


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
