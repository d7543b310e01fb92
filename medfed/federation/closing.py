"""The end of a site's part: its last numbers, the model that the hub chooses, and why it stopped before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl

from medfed.errors import ExchangeError, StudyError
from medfed.federation.config import REACHED_MAX_EPOCHS
from medfed.federation.round import SiteConnection, receive, send_update
from medfed.wire.update import GlobalModel, Update


def report_numbers(connection: SiteConnection, received: GlobalModel, numbers: Mapping[str, float]) -> None:
    """Send a site's numbers of a model that nobody trains any further; they are no tensors to compress."""
    report = Update(connection.site, received.round + 1, {}, 0, numbers)
    send_update(replace(connection, compress=()), report, received.weights)


def chosen_before_last(received: GlobalModel | None) -> bool:
    """Return whether the final model is an earlier round's than the last one, which the site scored."""
    return received is not None and received.chosen is not None and received.chosen < received.round - 1


def stop_reason(trainer: pl.Trainer) -> str:
    """Return why a site whose fit has ended takes no part in the rounds that are left."""
    if trainer.max_epochs is None or trainer.current_epoch >= trainer.max_epochs:
        return REACHED_MAX_EPOCHS
    return (
        f"its Trainer stopped in epoch {trainer.current_epoch} of {trainer.max_epochs}, for example "
        "by EarlyStopping, max_steps or max_time, before the study's last round"
    )


def closed_study(site: str, round: int) -> ExchangeError:
    """Return what ends the training of a site whose hub has closed the study."""
    return ExchangeError(f"site '{site}' trains for round {round}, but the hub has closed the study")


def check_merged(trainer: pl.Trainer, site: str, local_epochs: int, merged_epoch: int | None) -> None:
    """Check that an epoch after which weights are merged has had its last batch, where the merge is.

    `merged_epoch` is the last epoch after which they were, None if a checkpoint does not say.

    Raises:
        StudyError: if it ended before, although training goes on.
    """
    stops = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
    if stops or merged_epoch in (None, trainer.current_epoch) or (trainer.current_epoch + 1) % local_epochs:
        return
    completed = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    raise StudyError(
        f"site '{site}': epoch {trainer.current_epoch + 1} ended after {completed} of "
        f"{trainer.num_training_batches} batches, and weights are merged after the last one. Either a loader "
        "yields fewer batches than its length says (correct the dataset's or sampler's __len__, or leave "
        "it out) or none in a second pass (a generator), or on_train_batch_start returned -1 (return None "
        "from training_step to skip a batch), or StopIteration was raised in training, which Lightning takes "
        "for the end of the data (such as by next() of an iterator that has ended)"
    )


def fetch_once(trainer: pl.Trainer, connection: SiteConnection, round: int) -> GlobalModel:
    """Return the hub's model, which rank 0 receives and broadcasts to the hospital's other processes."""
    received = receive(connection, round) if trainer.is_global_zero else None
    if trainer.world_size > 1:
        plain: Any = None if received is None else _as_plain_dict(received)
        received = GlobalModel(**trainer.strategy.broadcast(plain))
    assert received is not None
    return received


def fetch_selected(trainer: pl.Trainer, connection: SiteConnection, round: int) -> GlobalModel:
    """Return the hub's model of this round or later that this site trains from, or that ends training."""
    received = fetch_once(trainer, connection, round)
    while not received.ends_training and not received.selects(connection.site):
        received = fetch_once(trainer, connection, received.round + 1)
    return received


def _as_plain_dict(received: GlobalModel) -> dict[str, Any]:
    plain = {"weights": dict(received.weights), "groups": {n: dict(g) for n, g in received.groups.items()}}
    return {**vars(received), **plain}
