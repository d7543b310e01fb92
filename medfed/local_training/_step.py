"""One training step, as a local method sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Step:
    """One batch before the module is trained on it, for a method that trains something besides the module.

    `module_loss()` is the module's training loss of the batch, in the Trainer's precision; nothing is logged.
    `gradient_share` is the batch's share of an accumulated gradient, `optimiser_steps` whether the optimiser
    steps after it, `progress` the share of the round's steps already done. `average` returns a tensor's mean
    over the hospital's processes. Multiply a loss by `loss_scale` before its backward pass, so that half
    precision keeps small gradients.
    """

    module: nn.Module
    batch: Any
    module_loss: Callable[[], Tensor]
    optimiser: Optimizer
    optimiser_steps: bool = True
    gradient_share: float = 1.0
    progress: float = 0.0
    clip: float | None = None
    loss_scale: float = 1.0
    average: Callable[[Tensor], Tensor] = lambda tensor: tensor
