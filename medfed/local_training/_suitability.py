"""Whether a local method can change the training of a module in a Trainer, before its first step."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from medfed.errors import StudyError
from medfed.local_training._local import LocalMethod
from medfed.registry import kind_of
from medfed.wire.update import GlobalModel
from medfed.wire.weights import as_real


def check_suits(
    method: LocalMethod | None, trainer: pl.Trainer, module: pl.LightningModule, site: str
) -> None:
    """Check that a local method does at this module and Trainer what its paper says.

    Raises:
        StudyError: with the reason and what to change.
    """
    if method is None:
        return
    reason = _unsuited(method, trainer, module)
    if reason:
        raise StudyError(f"site '{site}': local method '{kind_of(method)}' {reason}; nothing was trained")


def check_evaluates(required: Collection[str], module: pl.LightningModule, site: str) -> None:
    """Check that a module's training step can be run without training.

    Raises:
        StudyError: if a rule needs the loss before training, and the module optimises by hand.
    """
    if "train/loss_before" in required and not module.automatic_optimization:
        raise StudyError(
            f"site '{site}': this study needs the training loss of the received model, and this module's "
            "training_step takes its optimiser's steps itself (automatic_optimization is False); return the "
            "loss and let Lightning optimise, or give the hub another rule; nothing was trained"
        )


def check_steps(
    method: LocalMethod | None, module: nn.Module, received: GlobalModel | None, site: str
) -> None:
    """Check that a module whose optimiser has not stepped yet has the parameters that it received.

    A method changes gradients in Lightning's hook before a step, which only the optimisers of
    `self.optimizers()` call.

    Raises:
        StudyError: if another optimiser, or one that torch steps itself, has changed parameters.
    """
    if method is None or received is None or not changes_gradients(method):
        return
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and name in received.weights:
            own = as_real(parameter.detach())
            if not torch.equal(own, received.weights[name].to(own.device, own.dtype)):
                raise StudyError(
                    f"site '{site}': local method '{kind_of(method)}' changes the gradients of each step, "
                    f"and '{name}' changed without a step that Lightning knows. Return optimisers from "
                    "configure_optimizers and step those of self.optimizers(), without "
                    "use_pl_optimizer=False; nothing was sent"
                )


def changes_gradients(method: LocalMethod) -> bool:
    """Return whether a local method changes the gradient of a step."""
    return _overrides(method, "gradient")


def changes_loss(method: LocalMethod) -> bool:
    """Return whether a local method changes the loss of a batch."""
    return _overrides(method, "loss")


@contextmanager
def gradients_of(optimizer: Optimizer, module: nn.Module) -> Iterator[None]:
    """Show a local method the gradients, all dense, that one optimiser is about to use.

    Those of other optimisers are hidden meanwhile: with two, a term would else be added at the step of each.
    """
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    hidden = [(p, p.grad) for p in module.parameters() if id(p) not in own and p.grad is not None]
    for parameter in module.parameters():
        if id(parameter) not in own:
            parameter.grad = None
        elif parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()
    try:
        yield
    finally:
        for parameter, gradient in hidden:
            parameter.grad = gradient


def _unsuited(method: LocalMethod, trainer: pl.Trainer, module: pl.LightningModule) -> str:
    """Return why a method does not suit, or ''."""
    runs_step = _overrides(method, "loss") or (
        not method.is_data_free and (_overrides(method, "step") or _overrides(method, "evaluate_train"))
    )
    if runs_step and not module.automatic_optimization:
        return (
            "runs the module's training_step for its loss, and this one takes its optimiser's steps itself "
            "(automatic_optimization is False); return the loss and let Lightning optimise, or use fedprox, "
            "feddyn or fedbn"
        )
    optimisers: list[Any] = list(trainer.optimizers)
    if method.one_optimiser and len(optimisers) != 1:
        return f"needs one optimiser, this module has {len(optimisers)}"
    if lacking := method.lacking(module):
        return lacking
    if not changes_gradients(method):
        return ""
    if any(isinstance(optimiser, LBFGS) for optimiser in optimisers):
        return "changes gradients, and LBFGS compares them with the loss; use another optimiser"
    if any(isinstance(optimiser, SparseAdam) for optimiser in optimisers):
        return "adds a dense term to gradients, and SparseAdam takes sparse ones only; use Adam or SGD"
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    if scaled and any(getattr(optimiser, "_step_supports_amp_scaling", False) for optimiser in optimisers):
        return (
            "changes gradients, and a fused optimiser under 16-mixed has them scaled at that time; use "
            "fused=False or precision='bf16-mixed'"
        )
    return ""


def _overrides(method: LocalMethod, name: str) -> bool:
    return getattr(type(method), name) is not getattr(LocalMethod, name)
