"""What a local method sees of a Lightning Trainer: one step, and evaluation on the training cases."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from medfed.errors import StudyError
from medfed.local_training._step import Step
from medfed.local_training._train_pass import TrainEvaluator

# Holds the module's own training step while a local method's loss replaces it.
_MODULE_STEP = "_medfed_own_training_step"


def wrap_step(
    module: pl.LightningModule, loss: Callable[[pl.LightningModule, Callable[[], Tensor]], Tensor]
) -> None:
    """Wrap a local method's loss around the module's training step, until `restore_step`.

    A wrapper and not a hook, so that the term goes through Lightning's backward, with its gradient scaler,
    its accumulation and its reduction over processes. The module's own step logs what it always logs.
    """
    restore_step(module)
    module_step = module.training_step

    @functools.wraps(module_step)  # Lightning reads from its signature what it takes
    def training_step(*args: Any, **kwargs: Any) -> Any:
        outputs: list[Any] = []

        def train() -> Tensor:
            outputs.append(module_step(*args, **kwargs))
            return _loss(outputs[-1])

        total = loss(module, train)
        return {**outputs[-1], "loss": total} if isinstance(outputs[-1], Mapping) else total

    module.__dict__[_MODULE_STEP] = module_step
    module.__dict__["training_step"] = training_step


def restore_step(module: pl.LightningModule) -> None:
    """Give the module its own training step back."""
    module.__dict__.pop("training_step", None)
    module.__dict__.pop(_MODULE_STEP, None)


def current_step(
    trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_index: int, local_epochs: int
) -> Step:
    """Return the step that the Trainer is about to take."""
    accumulate = trainer.accumulate_grad_batches
    steps = trainer.num_training_batches
    total = steps * local_epochs
    steps_done = (trainer.current_epoch % local_epochs) * steps + batch_index
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return Step(
        module=module,
        batch=batch,
        module_loss=lambda: module_loss(trainer, module, batch, batch_index),
        optimiser=trainer.optimizers[0],
        optimiser_steps=(batch_index + 1) % accumulate == 0 or trainer.is_last_batch,
        gradient_share=1.0 / accumulate,
        progress=steps_done / total if total and total != float("inf") else 0.0,
        clip=None if trainer.gradient_clip_val is None else float(trainer.gradient_clip_val),
        loss_scale=float(scaler.get_scale()) if scaler is not None else 1.0,
        average=lambda tensor: process_mean(trainer, tensor),
    )


def train_evaluator(trainer: pl.Trainer, module: pl.LightningModule, site: str, seed: int) -> TrainEvaluator:
    """Return an evaluator of the Trainer's training cases; all its passes draw the same random patches."""

    def batches() -> Iterator[Any]:
        loader = trainer.train_dataloader
        if not isinstance(loader, DataLoader) or loader.batch_size is None:
            raise StudyError(
                f"site '{site}': this study evaluates the training cases before it trains, which needs one "
                f"torch DataLoader with a batch size; found {type(loader).__name__}"
            )
        torch.manual_seed(seed)
        if hasattr(loader.dataset, "set_random_state"):
            loader.dataset.set_random_state(seed)
        # A separate loader: a second iterator of Lightning's would end the one that training is about to use.
        drawn = drawable(loader)
        separate = DataLoader(
            loader.dataset if drawn is None else Subset(loader.dataset, drawn),
            loader.batch_size,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
        )
        for batch in separate:
            yield trainer.strategy.batch_to_device(batch)

    return TrainEvaluator(
        site,
        module,
        batches,
        lambda batch: module_loss(trainer, module, batch, 0),
        lambda tensor: process_mean(trainer, tensor),
    )


def drawable(loader: DataLoader[Any]) -> list[int] | None:
    """Return the items of the dataset that a loader's sampler can draw; None for all, or if that is unknown.

    A sampler of a subset stands for the hospital's training split: the others may be its validation cases.
    """
    sampler: Any = loader.sampler
    if isinstance(sampler, DistributedSampler):  # in which Lightning wraps a sampler for several processes
        sampler = getattr(sampler.dataset, "_sampler", None)
    if (items := getattr(sampler, "drawable", None)) is not None:
        return sorted(items)
    if isinstance(sampler, SubsetRandomSampler):
        return sorted({int(index) for index in sampler.indices})
    if isinstance(sampler, WeightedRandomSampler):
        return [int(index) for index in torch.as_tensor(sampler.weights).nonzero().flatten()]
    return None


def module_loss(trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_index: int) -> Tensor:
    """Return the module's own training loss of a batch, in the Trainer's precision; nothing is logged."""
    step = module.__dict__.get(_MODULE_STEP, module.training_step)
    with _nothing_logged(module), trainer.precision_plugin.train_step_context():
        takes_index = len(inspect.signature(step).parameters) > 1
        return _loss(step(batch, batch_index) if takes_index else step(batch)).float()


def process_mean(trainer: pl.Trainer, tensor: Tensor) -> Tensor:
    """Return a tensor's mean over the hospital's processes."""
    if trainer.world_size == 1:
        return tensor
    mean = trainer.strategy.reduce(tensor.to(trainer.strategy.root_device), reduce_op="mean")
    assert isinstance(mean, Tensor)
    return mean


def _loss(output: Any) -> Tensor:
    loss = output["loss"] if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise StudyError(
            f"training_step returned {type(loss).__name__}; a local method needs the loss of every "
            f"batch, as a tensor"
        )
    return loss


@contextmanager
def _nothing_logged(module: pl.LightningModule) -> Iterator[None]:
    module.__dict__["log"] = module.__dict__["log_dict"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del module.__dict__["log"], module.__dict__["log_dict"]
