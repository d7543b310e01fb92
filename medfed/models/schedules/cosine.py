"""Half a cosine down to a floor: Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983, without restarts."""

from __future__ import annotations

from math import cos, pi
from typing import Annotated

from msgspec import Meta

from medfed.models.schedules._schedule import Schedule


class Cosine(Schedule, tag="cosine", frozen=True):
    """Half a cosine, from the full rate down to `floor` times it."""

    floor: Annotated[float, Meta(ge=0, le=1)] = 0.0

    def factor(self, epoch: int, epochs: int) -> float:
        return self.floor + (1 - self.floor) * (1 + cos(pi * epoch / epochs)) / 2
