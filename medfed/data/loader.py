"""Batches of a dataset, made in this process or by workers, whose process is made ready before they fork."""

from __future__ import annotations

from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Dataset

from medfed.data.dataset import ImageDataset
from medfed.data.samplers import Batch, collate
from medfed.data.worker_imports import import_for_workers


def batch_loader(dataset: Dataset[Batch], workers: int, **batches: Any) -> DataLoader[Batch]:
    """Return a dataset's batches, made by `workers` processes; `batches` says, as to a DataLoader, which."""
    if workers:
        for part in dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]:
            if isinstance(part, ImageDataset):
                import_for_workers(part.cases, part.settings, part.needs)
                if part.settings.cache == "memory":
                    # Worker processes live for one epoch; their prepared cases would be lost with them.
                    for case in part.cases:
                        part.prepared(case)
    return DataLoader(dataset, num_workers=workers, collate_fn=collate, **batches)
