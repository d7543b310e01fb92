"""In which order a site's training items are drawn, and its validation items in a study's last rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from medfed.data.loader import batch_loader
from medfed.data.samplers import Batch, FixedStepBatchSampler, LastRoundsSampler
from medfed.errors import DataError


@dataclass(frozen=True)
class TrainingOrder:
    """How the items of a dataset are drawn into training batches.

    training: the numbers of the items that train from the first round on; those of validation cases are the
    others.  batch: items of a batch.  steps: batches of an epoch, None for one pass over `training`.  seed:
    decides the order, where torch's global generator does not.  on_all: whether the last rounds train on all
    items (`train.last_rounds_on_all`): their epochs have as many batches.
    """

    training: Sequence[int]
    batch: int
    seed: str
    steps: int | None = None
    on_all: bool = False

    def loader(self, dataset: Dataset[Batch], workers: int) -> DataLoader[Batch]:
        """Return the dataset's training batches, made by so many processes."""
        every: int = len(dataset)  # type: ignore[arg-type]
        order: dict[str, Any] = {"batch_size": self.batch, "shuffle": True}
        if self.steps is not None:
            drawn = FixedStepBatchSampler(self.training, self.batch, self.steps, self.seed, every)
            order = {"batch_sampler": drawn}
        elif self.on_all:
            sampler = LastRoundsSampler(self.training, every, f"{self.seed}/last rounds")
            order = {"batch_size": self.batch, "sampler": sampler}
        return batch_loader(dataset, workers, **order)

    def check_processes(self, processes: int) -> None:
        """Raise if a site trains in several processes, which each would draw all items.

        Raises:
            DataError: naming the study's key.
        """
        if processes == 1:
            return
        for key, used, instead in (
            ("train.steps", self.steps is not None, "omit train.steps and count by train.epochs"),
            ("train.last_rounds_on_all", self.on_all, "omit it, or set devices to 1 in the site file"),
        ):
            if used:
                raise DataError(
                    f"{key} counts the batches of one process, and this site trains in {processes}; {instead}"
                )
