"""The last rounds of a study, in which each site trains on its training and validation cases together.

An epoch has as many steps as before, so that schedules, and what a round costs, stay. The model of the round
before is the last one with validation scores: later ones would be of cases that train. Validation cases then
count in the weight of the site's updates.
"""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl

from medfed.errors import StudyError
from medfed.federation.acceptance import MOST_ON_ALL, trains_on_all
from medfed.federation.config import SiteConfig
from medfed.federation.examples import training_loaders


class LastRoundsOnAll(pl.Callback):
    """Lets the training sampler draw from all cases from a round on, and ends validation.

    It is given to the Trainer before the callback that seeds the epoch, which makes the epoch's iterator.

    Args:
        site: the site's name, for an error.
        first: the first such round.
        local_epochs: the epochs of a round.
        round_of: returns the round that is being trained, from a Trainer; by its epochs if None.
    """

    def __init__(
        self, site: str, first: int, local_epochs: int, round_of: Callable[[pl.Trainer], int] | None = None
    ) -> None:
        self._site, self._first, self._local_epochs, self._round_of = site, first, local_epochs, round_of

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        complete, epoch = divmod(trainer.current_epoch, self._local_epochs)
        # A site of a federation may have missed rounds, which its epochs don't count.
        round = complete + 1 if self._round_of is None else self._round_of(trainer)
        if trains_on_all(self._first, round):
            train_on_all(trainer, self._site, (round - self._first) * self._local_epochs + epoch)
            trainer.limit_val_batches = 0


def last_rounds(
    site: str, config: SiteConfig, round_of: Callable[[pl.Trainer], int] | None = None
) -> list[pl.Callback]:
    """Return the callback of a site whose last rounds train on all cases, none for another; as the class."""
    if config.on_all_from is None:
        return []
    return [LastRoundsOnAll(site, config.on_all_from, config.local_epochs, round_of)]


def train_on_all(trainer: pl.Trainer, site: str, epoch: int) -> None:
    """Let the samplers of a Trainer's training batches draw from all cases; the first such epoch is 0.

    Raises:
        StudyError: if a loader has no sampler that can.
    """
    for loader in training_loaders(trainer):
        samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
        starts = [one.train_on_all for one in samplers if one is not None and hasattr(one, "train_on_all")]
        if not starts:
            raise StudyError(
                f"site '{site}': the study's last rounds train on validation cases, too "
                "(train.last_rounds_on_all), and its training batches are not drawn by medfed; leave the key "
                "out"
            )
        for start in starts:
            start(epoch)


def examples_in(first: int | None, examples: int | None, on_all: int | None) -> Callable[[int], int] | None:
    """Return what gives the examples of a site's update by its round; None where they are counted.

    Args:
        first: the first round that trains on all cases, or None.
        examples: the site's training cases.
        on_all: those and its validation cases.
    """
    if first is None or examples is None or on_all is None:
        return None
    # The hub takes more for a mistake or a lie.
    most = min(on_all, MOST_ON_ALL * examples)
    return lambda round: most if trains_on_all(first, round) else examples
