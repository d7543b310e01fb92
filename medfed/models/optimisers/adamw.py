"""Adam with decoupled weight decay: Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.optimisers._optimiser import Optimiser

if TYPE_CHECKING:
    from torch import nn, optim


class AdamW(Optimiser, tag="adamw", frozen=True):
    """Adam with decoupled weight decay, a good default."""

    lr: Annotated[float, Meta(gt=0)] = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: Annotated[float, Meta(gt=0)] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01

    def build(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        from torch import optim

        return optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, eps=self.epsilon, weight_decay=self.weight_decay
        )
