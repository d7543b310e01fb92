"""Training batches by number and not by pass: an epoch of exactly so many steps, whatever a
site's number of cases.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Which epoch it is, which Lightning says at its start; the order of an epoch's items is `FixedStepBatchSampler`'s."""

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
    """Batches of item numbers, `steps` an epoch, from passes over all items that go on where
    the last epoch stopped.

    Every pass visits each item once, in an order of its own, and ends with a smaller batch where they don't
    divide. An epoch's batches follow from `seed` and the epoch's number alone, so a resumed run repeats
    them. Hospitals of different sizes then do the same number of steps between two merges, as McMahan (2017)
    and FLamby count them.
    """

    def __init__(self, items: int, batch: int, steps: int, seed: str) -> None:
        self.sampler = EpochSampler(items)  # by this name Lightning finds what to tell the epoch
        self.batch_size = batch
        self.drop_last = False
        self.steps = steps
        self._seed = seed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        items, size = self.sampler.items, self.batch_size
        a_pass = -(-items // size)
        first = self.sampler.epoch * self.steps
        order: list[int] = []
        for number in range(first, first + self.steps):
            begun, place = divmod(number, a_pass)
            if not order or place == 0:
                order = random.Random(f"{self._seed}/{begun}").sample(range(items), items)
            yield order[place * size : (place + 1) * size]
