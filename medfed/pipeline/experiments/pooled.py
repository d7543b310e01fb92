"""All hospitals' cases in one place: the model that a federation is measured against, and only
a simulation can have.

Nothing here runs in a hospital: whoever pools holds every folder already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import ConcatDataset, DataLoader

from medfed.data.datamodule import SiteDataModule, collate
from medfed.data.samplers import FixedStepBatchSampler
from medfed.errors import DataError
from medfed.federation.callback import derived_seed
from medfed.federation.site import Training, train_alone

# Whose seeds the pooled model trains with, where a site's own model trains with the site's name.
POOLED_SITE = "pooled"


class PooledDataset(ConcatDataset):
    """Several hospitals' datasets one after the other, each drawing from a stream of its own."""

    def set_random_state(self, seed: int) -> None:
        """Make every following item derive from this seed, as a single hospital's dataset does."""
        for place, part in enumerate(self.datasets):
            if hasattr(part, "set_random_state"):
                part.set_random_state(derived_seed(seed, place))


class PooledData(pl.LightningDataModule):
    """The training batches of several hospitals, shuffled together; there is no validation,
    as nothing is chosen.

    A hospital's table is scaled by its own patients, and its images are prepared as it prepares them: the
    pooled model differs from the federated one by the federation alone.
    """

    def __init__(self, sites: Mapping[str, SiteDataModule], batch: int) -> None:
        super().__init__()
        self._seed = "/".join(str(sites[name].seed) for name in sorted(sites))
        # By name, so that the order in which hospitals were opened changes nothing.
        self._parts = [sites[name] for name in sorted(sites)]
        self._batch = batch

    def train_dataloader(self) -> DataLoader:
        """Return the training batches, shuffled by torch's global generator; the caller seeds it."""
        parts = [part.dataset("train", training=True) for part in self._parts if part.examples]
        if not parts:
            raise DataError("no hospital has a training case, so nothing can be pooled; mark some as 'train'")
        settings: Any = self._parts[0].settings
        workers = getattr(settings, "workers", 0)
        if all(part.steps is not None for part in self._parts):
            # As many steps an epoch as the hospitals do together, so that the pooled model learns as long.
            joined = PooledDataset(parts)
            steps = sum(part.steps or 0 for part in self._parts)
            batches = FixedStepBatchSampler(len(joined), self._batch, steps, f"{POOLED_SITE}/{self._seed}")
            return DataLoader(joined, batch_sampler=batches, num_workers=workers, collate_fn=collate)
        return DataLoader(
            PooledDataset(parts), self._batch, shuffle=True, num_workers=workers, collate_fn=collate
        )


def train_pooled(
    sites: Mapping[str, SiteDataModule],
    module: pl.LightningModule,
    training: Training,
    *,
    batch: int,
    folder: Path,
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    """Train one model on the training cases of all these hospitals together, for as many epochs
    as a site trains.

    It sees each case as often as the federation does. Optimiser, schedule, clipping and seeds are the
    study's; merges and what they imply (rule, privacy, `keep_local`, a local objective) have no part in it.

    Raises:
        DataError: if no hospital has a training case.
    """
    train_alone(POOLED_SITE, module, PooledData(sites, batch), training, folder=folder, callbacks=callbacks)
