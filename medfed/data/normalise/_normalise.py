"""The contract of a normalisation: a frozen record that maps a channel's voxels to a network's range."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from medfed.registry import Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Normalise(Kind, frozen=True):
    """Maps one channel's intensities to about -1 to 1."""

    folder: ClassVar[str] = "normalise"

    def channel(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return new float32 voxels of the same shape; a constant channel becomes a constant.

        The input is not changed. It is finite: the transforms replace NaN by the volume's smallest value.
        """
        raise NotImplementedError

    def image(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a volume (C, X, Y, Z) with each channel normalised by itself."""
        import numpy as np

        return np.stack([self.channel(one) for one in voxels])
