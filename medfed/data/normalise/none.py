"""No normalisation: intensities as the reader gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medfed.data.normalise._normalise import Normalise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class NoNormalisation(Normalise, tag="none", frozen=True):
    """Leaves intensities as the reader gives them: HU for CT, the scanner's own units for MR."""

    def channel(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        return voxels.astype(np.float32, copy=True)
