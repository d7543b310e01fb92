"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.errors import StudyError
from medfed.models.optimisers._optimiser import Optimiser

if TYPE_CHECKING:
    from torch import nn, optim


class SGD(Optimiser, tag="sgd", frozen=True):
    """Stochastic gradient descent, optionally with momentum."""

    lr: Annotated[float, Meta(gt=0)] = 0.01
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0

    def build(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        if self.nesterov and not self.momentum:
            raise StudyError(
                "optimiser 'sgd': nesterov needs momentum above 0; set momentum: 0.9 or omit nesterov"
            )
        from torch import optim

        return optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )
