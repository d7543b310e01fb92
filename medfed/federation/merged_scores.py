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
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
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
        name in own and _equal(own[name], merged[name].to(own[name].device, own[name].dtype))
        for name in merged
    )


def _equal(one: Tensor, two: Tensor) -> bool:
    # Bytes first, eight at a time, which takes half as long; other bytes may still be equal values (-0.0).
    ours, theirs = _words(one), _words(two)
    same = one.shape == two.shape and ours is not None and theirs is not None and torch.equal(ours, theirs)
    return same or torch.equal(one, two)


def _words(tensor: Tensor) -> Tensor | None:
    """Return a view of a tensor's bytes, eight at a time; None where they cannot be divided so."""
    size = tensor.element_size()
    if not tensor.is_contiguous() or tensor.storage_offset() * size % 8 or tensor.numel() * size % 8:
        return None
    return tensor.detach().reshape(-1).view(torch.int64)


def measures(trainer: pl.Trainer) -> bool:
    """Return whether a validation is one of a fit's own: `Trainer.validate` may take any model and data."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


class ForwardWatch:
    """Whether a validation runs on the merged weights, looked at where layers are first used.

    A module may put other weights in after Lightning's hooks for callbacks: in a hook of its own, or within
    its validation_step; or it uses layers that are none of its own, such as a moving average's copy. A
    compiled or scripted module is not watched: a hook would change its graph.
    """

    def __init__(self, module: nn.Module, own: Weights, merged: Weights) -> None:
        self._held = holds(own, merged)
        self._handles: dict[int, RemovableHandle] = {}
        layers = dict(module.named_modules()) if self._held and not _is_compiled(module) else {}
        # Tensors of the module itself and of lists of tensors are used without any layer being called.
        self._must_be_used = True
        for prefix, layer in layers.items():
            path = f"{prefix}." if prefix else ""
            if names := [name for name in _own_tensors(layer) if path + name in merged]:
                wanted = {name: merged[path + name] for name in names}
                self._handles[id(layer)] = layer.register_forward_pre_hook(partial(self._look, wanted))
                self._must_be_used &= bool(prefix) and not isinstance(layer, _UNCALLED)
        self._watched = len(self._handles)

    def ends(self) -> bool:
        """Return whether the layers held the merged weights, and watch no longer."""
        unused = 0 < self._watched == len(self._handles)
        for handle in self._handles.values():
            handle.remove()
        return self._held and not (unused and self._must_be_used)

    def _look(self, wanted: Weights, layer: nn.Module, inputs: Any) -> None:
        # Once for each layer: batch norm may change its own statistics in use. What the layer holds now, not
        # when validation began: torch.func.functional_call puts other tensors in.
        handle = self._handles.pop(id(layer), None)
        if handle is None:  # a copy of a layer, made during this validation, has its hook
            return
        handle.remove()
        now = {name: as_real(tensor.detach()) for name, tensor in _own_tensors(layer).items()}
        self._held = self._held and holds(now, wanted)


# Layers that hold tensors for others.
_UNCALLED = (nn.ParameterList, nn.ParameterDict)


def _own_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a layer itself, not those of layers within it."""
    own = {**layer._parameters, **layer._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


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
OTHER_WEIGHTS = (
    "validation ran on other weights, such as a moving average's, or used none of the module's layers"
)


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
