"""What a local method sees of a Lightning Trainer: one step, and a look at the training cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medfed.errors import StudyError
from medfed.local_training._local import Step
from medfed.local_training._train_pass import Look

# Where the module's own training step waits while a local method's loss stands in its place.
_OWN = "_medfed_own_training_step"


def wrap_step(
    module: pl.LightningModule, loss: Callable[[pl.LightningModule, Callable[[], Tensor]], Tensor]
) -> None:
    """Put a local method's loss around the module's training step, until `restore_step`.

    Around it and not in a hook: so the term goes through Lightning's own backward, with its gradient scaler,
    its accumulation and its reduction over processes. The module's own step logs what it always logs.
    """
    restore_step(module)
    own = module.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        outputs: list[Any] = []

        def train() -> Tensor:
            outputs.append(own(*args, **kwargs))
            return _loss(outputs[-1])

        total = loss(module, train)
        return {**outputs[-1], "loss": total} if isinstance(outputs[-1], Mapping) else total

    module.__dict__[_OWN] = own
    module.__dict__["training_step"] = training_step


def restore_step(module: pl.LightningModule) -> None:
    """Give the module its own training step back."""
    module.__dict__.pop("training_step", None)
    module.__dict__.pop(_OWN, None)


def step_of(
    trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_index: int, local_epochs: int
) -> Step:
    """Return the step that the Trainer is about to take."""
    accumulate = trainer.accumulate_grad_batches
    steps = trainer.num_training_batches
    total = steps * local_epochs
    behind = (trainer.current_epoch % local_epochs) * steps + batch_index
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return Step(
        module=module,
        batch=batch,
        own_loss=lambda: own_loss(trainer, module, batch, batch_index),
        optimiser=trainer.optimizers[0],
        ends=(batch_index + 1) % accumulate == 0 or trainer.is_last_batch,
        part=1.0 / accumulate,
        done=behind / total if total and total != float("inf") else 0.0,
        clip=None if trainer.gradient_clip_val is None else float(trainer.gradient_clip_val),
        scale=float(scaler.get_scale()) if scaler is not None else 1.0,
        average=lambda tensor: averaged(trainer, tensor),
    )


def look_of(trainer: pl.Trainer, module: pl.LightningModule, site: str, seed: int) -> Look:
    """Return a look at the Trainer's training cases; random patches are the same in every pass of one look."""

    def batches() -> Iterator[Any]:
        loader = trainer.train_dataloader
        if not isinstance(loader, DataLoader) or loader.batch_size is None:
            raise StudyError(
                f"site '{site}': this study looks at the training cases before it trains, which needs one torch "
                f"DataLoader with a batch size; found {type(loader).__name__}"
            )
        torch.manual_seed(seed)
        if hasattr(loader.dataset, "set_random_state"):
            loader.dataset.set_random_state(seed)
        # A loader of its own: another iterator of Lightning's would end the one that training is
        # about to use.
        passed = DataLoader(
            loader.dataset, loader.batch_size, num_workers=loader.num_workers, collate_fn=loader.collate_fn
        )
        for batch in passed:
            yield trainer.strategy.batch_to_device(batch)

    return Look(
        site,
        module,
        batches,
        lambda batch: own_loss(trainer, module, batch, 0),
        lambda tensor: averaged(trainer, tensor),
    )


def own_loss(trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_index: int) -> Tensor:
    """Return the module's own training loss of a batch, in the Trainer's precision; nothing is logged."""
    own = module.__dict__.get(_OWN, module.training_step)
    with _nothing_logged(module), trainer.precision_plugin.train_step_context():
        return _loss(own(batch, batch_index)).float()


def averaged(trainer: pl.Trainer, tensor: Tensor) -> Tensor:
    """Return a tensor's mean over the hospital's processes."""
    if trainer.world_size == 1:
        return tensor
    found = trainer.strategy.reduce(tensor.to(trainer.strategy.root_device), reduce_op="mean")
    assert isinstance(found, Tensor)
    return found


def _loss(output: Any) -> Tensor:
    found = output["loss"] if isinstance(output, Mapping) else output
    if not isinstance(found, Tensor):
        raise StudyError(
            f"training_step returned {type(found).__name__}; a local method needs the loss of every batch, as a tensor"
        )
    return found


@contextmanager
def _nothing_logged(module: pl.LightningModule) -> Iterator[None]:
    module.__dict__["log"] = module.__dict__["log_dict"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del module.__dict__["log"], module.__dict__["log_dict"]
