"""How many training cases a site's weights stand for, counted from what it trained on.

The length of a dataset is not it: a sampler may draw a part of the cases, `limit_train_batches` end a pass
early, and a dataset of patches has several items of a case. Counted are distinct cases where a module, a
DataModule or a dataset can say how many it has, in an attribute `federated_examples`; where medfed knows the
dataset (MONAI's patches and SmartCache, TorchIO's Queue, torch's Subset and ConcatDataset); or where a
dataset has a length, whose items are cases. A pass that visits a part of the items counts for that part. For
data without a length, the samples of a pass are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from math import ceil
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Subset,
)

from medfed.local_training._lightning import drawable

# The attribute in which a module, DataModule or dataset says how many distinct cases it trains on.
DECLARED = "federated_examples"

# How far a count may be from the examples that a site was told to state before its log says so.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Pass:
    """What one process has trained on in a pass over its data: batches, and samples (rows of the batches)."""

    batches: int = 0
    samples: int = 0

    def after(self, batch: Any) -> Pass:
        """Return the pass after one more batch."""
        return Pass(self.batches + 1, self.samples + batch_size(batch))


def count_examples(trainer: pl.Trainer, module: pl.LightningModule, seen: Pass) -> int:
    """Return how many cases the training of a pass stands for, in all processes of this hospital together."""
    datamodule = getattr(trainer, "datamodule", None)
    for holder in (module, datamodule):
        if (declared := _declared(holder)) is not None:
            return declared
    total, counted = 0, set()
    loaders = training_loaders(trainer)
    samples = seen.samples if len(loaders) == 1 else None  # of several, the rows are not told apart
    for loader in loaders:
        dataset = getattr(loader, "dataset", None)
        count = _count(trainer, loader, seen.batches, samples)
        if dataset is None or id(dataset) not in counted:
            total += count
        counted.add(id(dataset))
    return total


def disagreement(stated: int | None, counted: int) -> str:
    """Return a sentence if the examples that a site states are not those it trains on; '' if they are."""
    if stated is None or abs(stated - counted) <= TOLERANCE * stated:
        return ""
    return (
        f"states {stated} examples, and trained on {counted} in a pass. Its weight in the merge is {stated}; "
        "correct FederatedCallback(examples=...), or leave it out and the count is taken"
    )


def training_loaders(trainer: pl.Trainer) -> list[Any]:
    """Return the training loaders of a Trainer one by one, of a dict or list of loaders too."""
    return [loader for loader in tree_leaves(trainer.train_dataloader) if loader is not None]


def batch_size(batch: Any) -> int:
    """Return how many samples a batch holds: the first axis of its first tensor, or its number of graphs."""
    size = _rows(batch)
    return 1 if size is None else size


def _count(trainer: pl.Trainer, loader: Any, batches: int, samples: int | None) -> int:
    items, shared = _items(loader, batches, samples), False
    dataset = getattr(loader, "dataset", None)
    if isinstance(loader, DataLoader):
        shared = isinstance(loader.sampler, DistributedSampler)
    if shared:
        items = _sum(trainer, items)
    counted = _distinct_of_items(loader, dataset, items)
    return counted if shared else _sum(trainer, counted)


def _distinct_of_items(loader: Any, dataset: Any, items: int) -> int:
    """Return how many distinct cases so many drawn items are."""
    cases, length = distinct_cases(dataset), _length(dataset)
    if cases is None:
        return items
    if not length:  # an iterable dataset that knows its cases, and not its items
        return cases
    subset = drawable(loader) if isinstance(loader, DataLoader) else None
    possible = length if subset is None else len(subset)
    return ceil(cases * min(items, possible) / length - 1e-9)


def distinct_cases(dataset: Any) -> int | None:
    """Return how many distinct cases a dataset has, or None if that is not known."""
    if (declared := _declared(dataset)) is not None:
        return declared
    if isinstance(dataset, ConcatDataset):
        # One dataset several times is a way to draw its cases more often.
        parts = [distinct_cases(part) for part in {id(part): part for part in dataset.datasets}.values()]
        return None if any(part is None for part in parts) else sum(part or 0 for part in parts)
    if isinstance(dataset, Subset):
        inner, chosen = distinct_cases(dataset.dataset), len(set(dataset.indices))
        return chosen if inner is None else min(inner, chosen)
    for package, name, attribute in _KNOWN:
        if _is(dataset, package, name):
            return distinct_cases(getattr(dataset, attribute))
    return _length(dataset)


# Datasets whose items are not cases, and the attribute that holds the cases.
_KNOWN = (
    ("monai", "PatchDataset", "data"),
    ("monai", "GridPatchDataset", "data"),
    ("monai", "SmartCacheDataset", "data"),
    ("torchio", "Queue", "subjects_dataset"),
)


def _is(dataset: Any, package: str, name: str) -> bool:
    # By name: importing these packages here would cost seconds, and they may not be installed.
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == package
        for base in type(dataset).__mro__
    )


def _declared(holder: Any) -> int | None:
    declared = getattr(holder, DECLARED, None)
    return declared if isinstance(declared, int) and not isinstance(declared, bool) and declared > 0 else None


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset) if isinstance(dataset, Sized) else None
    except (TypeError, NotImplementedError):
        return None


def _items(loader: Any, batches: int, samples: int | None) -> int:
    """Return how many items of its dataset one process drew in so many batches."""
    batch = getattr(loader, "batch_size", None)
    if batch is None:
        batch = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if isinstance(batch, int):
        # A batch may hold more rows than items: several patches of each case.
        whole = batches * batch
        length = _length(getattr(loader, "sampler", None)) if _is_map_style(loader) else None
        return min(whole, length) if length is not None else min(whole, samples or whole)
    if _is_map_style(loader) and getattr(loader, "batch_sampler", None) is None:
        return batches  # one item at a time
    return batches if samples is None else samples


def _is_map_style(loader: Any) -> bool:
    dataset = getattr(loader, "dataset", None)
    return dataset is not None and not isinstance(dataset, IterableDataset)


def _sum(trainer: pl.Trainer, count: int) -> int:
    if trainer.world_size == 1:
        return count
    total = trainer.strategy.reduce(torch.tensor(count, device=trainer.strategy.root_device), reduce_op="sum")
    return int(total)


def _rows(batch: Any) -> int | None:
    graphs = getattr(batch, "num_graphs", None)
    if isinstance(graphs, int):
        return graphs
    if isinstance(batch, Tensor):
        return int(batch.shape[0]) if batch.ndim else 1
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, (list, tuple)):
        if batch and all(isinstance(one, Mapping) for one in batch):
            return len(batch)  # samples that no collate function has joined
        parts = list(batch)
    else:
        parts = list(vars(batch).values()) if hasattr(batch, "__dataclass_fields__") else []
    return next((size for part in parts if (size := _rows(part)) is not None), None)
