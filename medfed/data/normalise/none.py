"""No normalisation: intensities as the reader gives them."""

from __future__ import annotations

from medfed.data.normalise._normalise import Normalise, Voxels


class NoNormalisation(Normalise, tag="none", frozen=True):
    """Leaves intensities as the reader gives them: HU for CT, the scanner's own units for MR."""

    def channel(self, voxels: Voxels) -> Voxels:
        return voxels.astype("float32", copy=True)
