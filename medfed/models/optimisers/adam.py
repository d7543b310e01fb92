"""Adam: Kingma and Ba, ICLR 2015, arXiv:1412.6980; weight decay is an L2 term in the gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.models.optimisers._optimiser import Optimiser

if TYPE_CHECKING:
    from torch import nn, optim


class Adam(Optimiser, tag="adam", frozen=True):
    """Adam; its weight decay is an L2 term in the gradient."""

    lr: Annotated[float, Meta(gt=0)] = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: Annotated[float, Meta(gt=0)] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0

    def build(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        from torch import optim

        return optim.Adam(
            parameters, lr=self.lr, betas=self.betas, eps=self.epsilon, weight_decay=self.weight_decay
        )
