"""A power of the remaining share of the run, as in DeepLab (arXiv:1606.00915) and nnU-Net."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from medfed.models.schedules._schedule import Schedule


class Polynomial(Schedule, tag="polynomial", frozen=True):
    """The remaining share of the run, to the power of `power`."""

    power: Annotated[float, Meta(gt=0)] = 0.9

    def factor(self, epoch: int, epochs: int) -> float:
        return float((1 - epoch / epochs) ** self.power)
