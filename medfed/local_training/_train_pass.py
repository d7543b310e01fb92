"""A look at a site's training cases without training on them: losses, a gradient, losses by class.

Methods that choose before they train need one: which of several models fits (IFCA), how far the received one
is from fitting (q-FedAvg, FedNoRo), what the gradient there is (SCAFFOLD's option I). Cases are visited in
order and the random states put back, so that a look changes nothing of the training that follows. It costs a
pass over the training cases, and the passes are only made when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medfed.errors import StudyError
from medfed.local_training._personal_model import unnoticed, worn
from medfed.wire.weights import Weights


class Look:
    """A site's training cases, seen through the module.

    `batches` begins a pass over them, each batch on the module's device; `loss` is the module's own training
    loss of one, and `average` a tensor's mean over the hospital's processes.
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
        """Return the mean training loss over the batches, of the module as it stands or with other weights."""
        with unnoticed(), _evaluating(self.module), worn(self.module, weights or {}):
            losses = [self._loss(batch).double() for batch in self._batches()]
        return float(self._average(torch.stack(losses).mean())) if losses else float("nan")

    def gradient(self) -> dict[str, Tensor]:
        """Return the mean gradient of the training loss over the batches, by parameter, on the CPU.

        In training mode, as a step takes it; batch norm's running statistics are put back.
        """
        named = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        count = 0
        with unnoticed(), _buffers_kept(self.module):
            for batch in self._batches():
                found = torch.autograd.grad(self._loss(batch), list(named.values()), allow_unused=True)
                for name, part in zip(named, found, strict=True):
                    if part is not None:
                        total[name] += part
                count += 1
        return {name: (self._average(t) / max(count, 1)).cpu() for name, t in total.items()}

    @torch.no_grad()
    def class_losses(self) -> dict[str, float]:
        """Return the mean cross entropy of the training examples (or voxels) of each class that the site has.

        Raises:
            StudyError: if the module cannot tell its loss by class.
        """
        by_class = getattr(self.module, "class_losses", None)
        if by_class is None:
            raise StudyError(
                f"site '{self._site}': this study needs the loss by class, which {type(self.module).__name__} cannot "
                f"tell; take a segmentation or classification task, or give the module `class_losses(batch)`"
            )
        total: dict[str, Tensor] = {}
        with unnoticed(), _evaluating(self.module):
            for batch in self._batches():
                for name, pair in by_class(batch).items():
                    total[name] = total.get(name, torch.zeros_like(pair)) + pair
        return {
            n: float(t[0] / t[1]) for n, t in ((n, self._average(t)) for n, t in total.items()) if t[1] > 0
        }


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    kept = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(kept[name])
