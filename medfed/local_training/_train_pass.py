"""Evaluation on a site's training cases without training: losses, a gradient, losses per class.

Methods that decide before they train use it: IFCA (which of several models fits), q-FedAvg and FedNoRo (how
well the received model fits), SCAFFOLD's option I (the gradient there). Cases are visited in order and the
random states restored, so that evaluation changes nothing in the training that follows. Each result costs one
pass over the training cases, made on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medfed.errors import StudyError
from medfed.local_training._weights import fork_rng, swapped_weights
from medfed.wire.weights import Weights


class TrainEvaluator:
    """Evaluates the module, or other weights in it, on a site's training cases.

    `batches` starts a pass over them, each batch on the module's device; `loss` is the module's training loss
    of a batch, and `average` a tensor's mean over the hospital's processes.
    """

    def __init__(
        self,
        site: str,
        module: nn.Module,
        batches: Callable[[], Iterator[Any]],
        loss: Callable[[Any], Tensor],
        average: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self.module = module
        self._site, self._batches, self._loss, self._average = site, batches, loss, average

    @torch.no_grad()
    def loss(self, weights: Weights | None = None) -> float:
        """Return the mean training loss over the batches, of the module as it is or with other weights."""
        with fork_rng(), _eval_mode(self.module), swapped_weights(self.module, weights or {}):
            losses = [self._loss(batch).double() for batch in self._batches()]
        return float(self._average(torch.stack(losses).mean())) if losses else float("nan")

    def gradient(self) -> dict[str, Tensor]:
        """Return the mean gradient of the training loss over the batches, by parameter, on the CPU.

        It is taken in training mode, as in a step; batch norm's running statistics are restored.
        """
        named = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        count = 0
        with fork_rng(), _restored_buffers(self.module):
            for batch in self._batches():
                gradients = torch.autograd.grad(self._loss(batch), list(named.values()), allow_unused=True)
                for name, part in zip(named, gradients, strict=True):
                    if part is not None:
                        total[name] += part
                count += 1
        return {name: (self._average(t) / max(count, 1)).cpu() for name, t in total.items()}

    @torch.no_grad()
    def class_losses(self) -> dict[str, float]:
        """Return the mean cross entropy of the training examples (or voxels) of each class that the site has.

        Raises:
            StudyError: if the module has no loss per class.
        """
        by_class = getattr(self.module, "class_losses", None)
        if by_class is None:
            raise StudyError(
                f"site '{self._site}': this study needs the loss per class, which "
                f"{type(self.module).__name__} lacks; take a segmentation or classification task, or give "
                "the module `class_losses(batch)`"
            )
        total: dict[str, Tensor] = {}
        with fork_rng(), _eval_mode(self.module):
            for batch in self._batches():
                for name, pair in by_class(batch).items():
                    total[name] = total.get(name, torch.zeros_like(pair)) + pair
        return {
            n: float(t[0] / t[1]) for n, t in ((n, self._average(t)) for n, t in total.items()) if t[1] > 0
        }


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


@contextmanager
def _restored_buffers(module: nn.Module) -> Iterator[None]:
    saved = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(saved[name])
