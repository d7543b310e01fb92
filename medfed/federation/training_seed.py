"""The seeds of a site's training: from the study's seed, or from a secret of the site and the run."""

from __future__ import annotations

import random
import secrets
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from medfed.federation.examples import training_loaders
from medfed.privacy import Privacy

# The study's seed, which everyone knows, or the secret of one site's run.
Seed = int | str


def derived_seed(seed: Seed, *names: object) -> int:
    """Return a 32-bit seed that depends on the study's seed (or the run's secret) and the names alone."""
    return random.Random("/".join(str(part) for part in (seed, *names))).getrandbits(32)


def training_seed(seed: int | None, privacy: Privacy) -> Seed | None:
    """Return the seed of a run's training: the study's, or a new secret if the hub is to see a sum only.

    Two runs with the same randomness, one of them without a hospital, would have sums that differ by that
    hospital's update alone, however well each sum is hidden.
    """
    return seed if privacy.reveals_each_update else secrets.token_hex(32)


def seed_epoch(trainer: pl.Trainer, seed: Seed, site: str) -> None:
    """Set all random states of an epoch from the study's seed, the site and the epoch alone.

    From a secret, the random states that a DataLoader or its samplers keep themselves are set too.
    """
    drawn = derived_seed(seed, site, trainer.current_epoch, trainer.global_rank)
    random.seed(drawn)
    np.random.seed(drawn)  # noqa: NPY002 - transforms of others draw from it
    torch.manual_seed(drawn)
    for loader in training_loaders(trainer):
        dataset = getattr(loader, "dataset", None)
        if dataset is not None and hasattr(dataset, "set_random_state"):
            dataset.set_random_state(drawn)
        if isinstance(seed, str):
            _seed_order(loader, drawn, derived_seed(seed, site, "order"))
    # Lightning makes the iterator of the first epoch, and of the first after a resume, before this hook and
    # all others after it. Made here in those cases too, an epoch draws the same numbers either way.
    loop = trainer.fit_loop
    if loop._data_fetcher is not None and (trainer.current_epoch == 0 or loop.is_resuming or loop.restarting):
        iter(loop._data_fetcher)


def _seed_order(loader: Any, of_epoch: int, of_run: int) -> None:
    """Set the seeds of generators and samplers that don't draw from torch's global random state.

    A sampler that goes on from epoch to epoch, or is one of several processes', takes the run's seed.
    """
    for part in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        if isinstance(generator := getattr(part, "generator", None), torch.Generator):
            generator.manual_seed(of_epoch)
        if part is not None and isinstance(getattr(part, "seed", None), int | str):
            part.seed = of_run


class SeededEpochs(pl.Callback):
    """Seeds each epoch as the federation does, so that models differ only by the merges."""

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._seed = name, seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seed_epoch(trainer, self._seed, self._name)
