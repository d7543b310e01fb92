"""The model trained on all hospitals' cases in one place, which only a simulation can have.

Nothing here runs in a hospital: whoever pools the data already has every folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import ConcatDataset, DataLoader

from medfed.data.datamodule import SiteDataModule
from medfed.data.training_order import TrainingOrder
from medfed.errors import DataError
from medfed.evaluation.rows import POOLED
from medfed.federation.site import train_alone
from medfed.federation.training_seed import derived_seed
from medfed.pipeline.factory import module_of, site_config_of
from medfed.pipeline.federate import StudyRun
from medfed.runs.checkpoints import load_or_train
from medfed.wire.weights import Weights, weights_of

# The name that seeds the pooled model, as a site's name seeds its own model.
POOLED_SITE = "pooled"


class PooledDataset(ConcatDataset[Any]):
    """Several hospitals' datasets concatenated, each with a random stream of its own."""

    def set_random_state(self, seed: int) -> None:
        """Derive every following item from this seed, as a single hospital's dataset does."""
        for number, part in enumerate(self.datasets):
            if hasattr(part, "set_random_state"):
                part.set_random_state(derived_seed(seed, number))


class PooledData(pl.LightningDataModule):
    """The training batches of several hospitals, shuffled together; there are no validation batches.

    A hospital's table is scaled by its own patients, and its images are prepared as it prepares them, so the
    pooled model differs from the federated one by the federation alone.
    """

    def __init__(self, sites: Mapping[str, SiteDataModule], batch: int) -> None:
        super().__init__()
        # Sorted by name, so that the order in which hospitals were opened does not matter.
        self._parts = [sites[name] for name in sorted(sites)]
        self._seed = "/".join(str(part.seed) for part in self._parts)
        self._batch = batch

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches, shuffled by torch's global generator; the caller seeds it."""
        parts = [part for part in self._parts if part.examples]
        if not parts:
            raise DataError("no hospital has a training case, so nothing can be pooled; mark some as 'train'")
        joined = PooledDataset([part.training_dataset() for part in parts])
        starts = [0, *joined.cumulative_sizes]
        training = [
            start + item
            for start, part in zip(starts, parts, strict=False)
            for item in range(part.training_items)
        ]
        # As many steps per epoch as all hospitals together, so that the pooled model trains as long.
        given = [part.steps for part in self._parts]
        steps = None if None in given else sum(one or 0 for one in given)
        on_all = any("val" in part.training_splits for part in parts)
        order = TrainingOrder(training, self._batch, f"{POOLED_SITE}/{self._seed}", steps, on_all)
        return order.loader(joined, self._parts[0].settings.workers)


def pooled_model(run: StudyRun) -> Weights:
    """Return the model trained on all hospitals' cases; a saved model is not trained again.

    It sees each case as often as the federation does. Optimiser, schedule, clipping and seeds are the
    study's; merges and what belongs to them (rule, privacy, `keep_local`, a local objective) play no part.

    Raises:
        DataError: if no hospital has a training case.
    """
    path = run.folder.checkpoint(POOLED)
    return load_or_train(path, run.study.train.rounds, partial(_train, run))


def _train(run: StudyRun) -> Weights:
    run.progress.log("all cases in one place, for comparison")
    module = module_of(run.study)
    sites = {name: run.hospitals[name].data for name in run.study.sites if name in run.hospitals}
    data = PooledData(sites, run.study.train.batch)
    train_alone(POOLED_SITE, module, data, site_config_of(run.study), folder=run.folder.site(POOLED))
    return weights_of(module)
