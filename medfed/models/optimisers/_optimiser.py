"""The base of all optimisers: a frozen record of settings that builds a torch optimiser."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from medfed.registry import Kind

if TYPE_CHECKING:
    from torch import nn, optim


class Optimiser(Kind, frozen=True):
    """The optimiser of a site's training; `lr` is the learning rate before the schedule."""

    folder: ClassVar[str] = "optimisers"

    def build(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        """Return the torch optimiser over these parameters."""
        raise NotImplementedError
