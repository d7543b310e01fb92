"""The same learning rate throughout."""

from __future__ import annotations

from medfed.models.schedules._schedule import Schedule


class Constant(Schedule, tag="constant", frozen=True):
    """The same learning rate throughout."""

    def factor(self, epoch: int, epochs: int) -> float:
        return 1.0
