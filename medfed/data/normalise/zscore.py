"""Mean 0 and standard deviation 1, over the whole channel or over its foreground."""

from __future__ import annotations

from medfed.data.normalise._normalise import Normalise, Voxels


class ZScore(Normalise, tag="zscore", frozen=True):
    """Subtracts the mean and divides by the standard deviation.

    foreground: take both from voxels above the channel's smallest value, which excludes the air or padding
    around a masked MR.  clip: the limit in standard deviations from the mean; null for no limit.
    """

    foreground: bool = False
    clip: float | None = None

    def channel(self, voxels: Voxels) -> Voxels:
        import numpy as np

        counted = voxels[voxels > voxels.min()] if self.foreground else voxels
        if counted.size == 0:
            counted = voxels
        # float64: in float32 the mean of a million voxels near 1e6 loses its last digits.
        mean, deviation = counted.mean(dtype=np.float64), counted.std(dtype=np.float64)
        result = (voxels - mean) / (deviation if deviation > 0 else 1.0)
        if self.clip is not None:
            result = result.clip(-self.clip, self.clip)
        return np.asarray(result, np.float32)
