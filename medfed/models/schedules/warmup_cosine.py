"""A linear rise, then half a cosine: Goyal et al. 2017, arXiv:1706.02677, and Loshchilov and Hutter 2017."""

from __future__ import annotations

from math import cos, pi
from typing import Annotated

from msgspec import Meta

from medfed.errors import StudyError
from medfed.models.schedules._schedule import Schedule


class WarmupCosine(Schedule, tag="warmup_cosine", frozen=True):
    """A linear rise over `warmup` epochs, then half a cosine down to `floor` times the rate.

    The first epoch has 1 / `warmup` of the rate, because a rate of 0 would learn nothing.
    """

    warmup: Annotated[int, Meta(ge=0)] = 5
    floor: Annotated[float, Meta(ge=0, le=1)] = 0.0

    def factor(self, epoch: int, epochs: int) -> float:
        if self.warmup >= epochs:
            raise StudyError(
                f"schedule 'warmup_cosine': warmup: {self.warmup} of {epochs} epochs leaves no epoch at "
                f"the full rate; make it smaller"
            )
        if epoch < self.warmup:
            return (epoch + 1) / self.warmup
        done = (epoch - self.warmup) / (epochs - self.warmup)
        return self.floor + (1 - self.floor) * (1 + cos(pi * done)) / 2
