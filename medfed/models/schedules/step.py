"""A learning rate that decreases in steps."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from medfed.models.schedules._schedule import Schedule


class Step(Schedule, tag="step", frozen=True):
    """Multiplies the learning rate by `gamma` after every `every` epochs."""

    every: Annotated[int, Meta(ge=1)] = 30
    gamma: Annotated[float, Meta(gt=0, le=1)] = 0.1

    def factor(self, epoch: int, epochs: int) -> float:
        return self.gamma ** (epoch // self.every)
