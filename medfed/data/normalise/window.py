"""A window of fixed units, such as HU, becomes -1 to 1: the same for every patient and hospital."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medfed.data.normalise._normalise import Normalise
from medfed.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Window(Normalise, tag="window", frozen=True):
    """Maps `low` to -1 and `high` to 1 and clips beyond; for CT, in HU.

    It is wrong for MR, whose units have no fixed meaning.
    """

    low: float = -160.0
    high: float = 240.0

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise DataError(
                f"normalise 'window': low is {self.low}, high is {self.high}; low must lie below high"
            )

    def channel(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        return ((voxels.clip(self.low, self.high) - self.low) / (self.high - self.low) * 2 - 1).astype(
            np.float32
        )
