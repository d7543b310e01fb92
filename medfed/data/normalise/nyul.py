"""Nyul's histogram landmarks: each MR's percentiles are mapped to the federation's, linearly in between.

Nyul, Udupa and Zhang, IEEE Transactions on Medical Imaging 2000; Shah et al., Medical Image Analysis 2011 for
the percentiles used here. The landmarks come from all hospitals' merged fingerprint and stand in the study.
Beyond the first and last percentile values are clipped; the paper extends the outer pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medfed.data.normalise._normalise import Normalise, Voxels
from medfed.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The first and last are robust ends, between them the deciles.
PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)


class Nyul(Normalise, tag="nyul", frozen=True):
    """Maps the image's percentiles to the federation's landmarks, linearly in between; for MR.

    landmarks: the values of the 1st, 10th, 20th, ... 90th and 99th percentile, rising from -1 to 1.
    foreground: take the percentiles from voxels above the image's mean, as the paper does, which excludes
    the air.
    """

    landmarks: tuple[float, ...]
    foreground: bool = True

    def __post_init__(self) -> None:
        if len(self.landmarks) != len(PERCENTILES):
            raise DataError(
                f"normalise 'nyul': {len(self.landmarks)} landmarks; expected {len(PERCENTILES)}, one for "
                f"each of the percentiles {', '.join(f'{p:g}' for p in PERCENTILES)}"
            )
        if any(second < first for first, second in zip(self.landmarks, self.landmarks[1:], strict=False)):
            raise DataError("normalise 'nyul': the landmarks fall; they must rise")

    @classmethod
    def example(cls) -> Nyul:
        """Return an instance for the contract test, as the kind has no defaults."""
        return cls(landmarks=tuple(p / 50 - 1 for p in PERCENTILES))

    def channel(self, voxels: Voxels) -> Voxels:
        import numpy as np

        values = percentiles(voxels, self.foreground)
        if values[-1] <= values[0]:
            return np.zeros_like(voxels, dtype=np.float32)
        # np.interp needs strictly rising values; of equal ones, as in a dark image, the last landmark holds.
        rising = np.append(np.diff(values) > 0, True)
        mapped = np.interp(voxels, values[rising], np.asarray(self.landmarks)[rising])
        return np.asarray(mapped, np.float32)


def percentiles(voxels: NDArray[np.floating[Any]], foreground: bool) -> NDArray[np.float64]:
    """Return the intensities at PERCENTILES of one channel, over the voxels above its mean or over all."""
    import numpy as np

    counted = voxels[voxels > voxels.mean(dtype=np.float64)] if foreground else voxels
    if counted.size == 0:
        counted = voxels
    return np.percentile(counted.astype(np.float64), PERCENTILES)
