"""Which validation scores are the merged model's: those measured while the module held its weights.

A validation may run on other weights: after more training, or while a callback such as an exponential moving
average has put its own in. What training logs is no score of the merged model either.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from medfed.wire.update import finite_scalars
from medfed.wire.weights import Weights, as_real


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


class ForwardWatch:
    """Whether a validation runs on the merged weights, looked at where layers are first used.

    A module may put other weights in after Lightning's hooks for callbacks: in a hook of its own, or within
    its validation_step. A compiled or scripted module is not watched: a hook would change its graph.
    """

    def __init__(self, module: nn.Module, own: Weights, merged: Weights) -> None:
        self._held = holds(own, merged)
        self._handles: dict[int, RemovableHandle] = {}
        layers = dict(module.named_modules()) if self._held and not _is_compiled(module) else {}
        for prefix, layer in layers.items():
            state = dict(layer.named_parameters(prefix, recurse=False))
            state |= dict(layer.named_buffers(prefix, recurse=False))
            if names := state.keys() & merged.keys():
                hook = partial(self._look, {name: state[name] for name in names}, merged)
                self._handles[id(layer)] = layer.register_forward_pre_hook(hook)

    def ends(self) -> bool:
        """Return whether the layers held the merged weights, and watch no longer."""
        for handle in self._handles.values():
            handle.remove()
        return self._held

    def _look(self, own: Weights, merged: Weights, layer: nn.Module, inputs: Any) -> None:
        # Once for each layer: batch norm may change its own statistics in use.
        self._handles.pop(id(layer)).remove()
        now = {name: as_real(tensor.detach()) for name, tensor in own.items()}
        self._held = self._held and holds(now, {name: merged[name] for name in now})


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiler_ctx", None) is not None or any(
        isinstance(layer, torch.jit.ScriptModule)
        or hasattr(layer, "_orig_mod")
        or getattr(layer, "_compiled_call_impl", None) is not None
        for layer in module.modules()
    )


def validated_scores(trainer: pl.Trainer, without: Collection[str] = ()) -> dict[str, float]:
    """Return what the validation that has just ended logged, and nothing that training logged."""
    # `callback_metrics` holds training's, too, and those of a validation before this one.
    metrics = trainer._logger_connector.metrics["callback"]
    return finite_scalars({name: float(value) for name, value in metrics.items() if name not in without})


# Why a validation gave no scores of the merged model.
OTHER_WEIGHTS = "validation ran on other weights, such as a moving average's"


def unscored(why: str) -> str:
    """Return a sentence on a merged model of which a site has no scores."""
    why = why or "no validation ran between that merge and the next step"
    return (
        f"a merged model has no scores of this site: {why}. They are missing at the hub; validate after each "
        "merge, or know that only the final model is scored"
    )


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
