"""Two percentiles of the volume become -1 and 1; values outside are clipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.data.normalise._normalise import Normalise
from medfed.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Percentile(Normalise, tag="percentile", frozen=True):
    """Maps the volume's own `low` and `high` percentile to -1 and 1 and clips beyond them.

    It suits CT and MR together, and MR of any gain; one bright implant changes nothing.
    """

    low: Annotated[float, Meta(ge=0, le=100)] = 0.5
    high: Annotated[float, Meta(ge=0, le=100)] = 99.5

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise DataError(
                f"normalise 'percentile': low is {self.low}, high is {self.high}; low must lie below high"
            )

    def channel(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        low, high = np.percentile(voxels, [self.low, self.high])
        if high <= low:
            return np.zeros_like(voxels, dtype=np.float32)
        return np.asarray((voxels.clip(low, high) - low) / (high - low) * 2 - 1, np.float32)
