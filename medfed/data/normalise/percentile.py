"""Two percentiles of the volume become -1 and 1; values outside are clipped."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from medfed.data.normalise._normalise import Normalise, Voxels, check_low_below_high


class Percentile(Normalise, tag="percentile", frozen=True):
    """Maps the volume's own `low` and `high` percentile to -1 and 1 and clips beyond them.

    It suits CT and MR together, and MR of any gain; one bright implant changes nothing.
    """

    low: Annotated[float, Meta(ge=0, le=100)] = 0.5
    high: Annotated[float, Meta(ge=0, le=100)] = 99.5

    def __post_init__(self) -> None:
        check_low_below_high(self, self.low, self.high)

    def channel(self, voxels: Voxels) -> Voxels:
        import numpy as np

        low, high = np.percentile(voxels, [self.low, self.high])
        if high <= low:
            return np.zeros_like(voxels, dtype=np.float32)
        return np.asarray((voxels.clip(low, high) - low) / (high - low) * 2 - 1, np.float32)
