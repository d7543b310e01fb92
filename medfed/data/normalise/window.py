"""A window of fixed units, such as HU, becomes -1 to 1: the same for every patient and hospital."""

from __future__ import annotations

from medfed.data.normalise._normalise import Normalise, Voxels, check_low_below_high


class Window(Normalise, tag="window", frozen=True):
    """Maps `low` to -1 and `high` to 1 and clips beyond; for CT, in HU.

    It is wrong for MR, whose units have no fixed meaning.
    """

    low: float = -160.0
    high: float = 240.0

    def __post_init__(self) -> None:
        check_low_below_high(self, self.low, self.high)

    def channel(self, voxels: Voxels) -> Voxels:
        scaled = voxels.clip(self.low, self.high)
        # In place: new arrays cost more time than the arithmetic.
        scaled -= self.low
        scaled /= self.high - self.low
        scaled *= 2
        scaled -= 1
        return scaled.astype("float32", copy=False)
