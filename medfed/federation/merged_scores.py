"""Which validation scores are the merged model's: those measured while the module held its weights.

A validation may run on other weights: after more training, or while a callback such as an exponential moving
average has put its own in. What training logs is no score of the merged model either.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from medfed.wire.update import finite_scalars
from medfed.wire.weights import Weights


class Schedule(NamedTuple):
    """When a Trainer validates."""

    check_val_every_n_epoch: int | None
    val_check_batch: Any


def holds(own: Weights, merged: Weights) -> bool:
    """Return whether a module's exchanged tensors are the merged ones, in its own dtypes."""
    return all(
        name in own and torch.equal(own[name], merged[name].to(own[name].device, own[name].dtype))
        for name in merged
    )


def validated_scores(trainer: pl.Trainer) -> dict[str, float]:
    """Return what the validation that has just ended logged, and nothing that training logged."""
    # `callback_metrics` holds training's, too, and those of a validation before this one.
    metrics = trainer._logger_connector.metrics["callback"]
    return finite_scalars({name: float(value) for name, value in metrics.items()})


def only_trained(names: Collection[str]) -> str:
    """Return a sentence on declared scores that no validation logged, or '' if there are none."""
    if not names:
        return ""
    return (
        f"{', '.join(sorted(names))} of the module's `scores` are logged by training, before the merge; only "
        "what validation logs is a score of the merged model and leaves"
    )


def validate_after_this_batch(trainer: pl.Trainer) -> Schedule:
    """Let a Trainer that validates at all do so after the batch that ends, and return its own schedule."""
    own = Schedule(trainer.check_val_every_n_epoch, trainer.val_check_batch)
    trainer.check_val_every_n_epoch = 1
    if isinstance(own.val_check_batch, int):
        trainer.val_check_batch = 1
    return own


def restore_schedule(trainer: pl.Trainer, own: Schedule) -> None:
    """Let a Trainer validate by its own schedule again."""
    trainer.check_val_every_n_epoch, trainer.val_check_batch = own
