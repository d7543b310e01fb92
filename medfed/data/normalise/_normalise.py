"""What every normalisation is: a frozen record that maps one channel's voxels to numbers a network likes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from medfed.registry import Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Normalise(Kind, frozen=True):
    """How one channel's intensities become numbers of about -1 to 1."""

    folder: ClassVar[str] = "normalise"

    def channel(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return new float32 voxels of the same shape; the input stays as it is. A constant channel becomes a
        constant.

        The input is finite: the transforms put a volume's smallest finite value where a reader found NaN.
        """
        raise NotImplementedError

    def image(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a volume (C, X, Y, Z) with each channel normalised for itself."""
        import numpy as np

        return np.stack([self.channel(one) for one in voxels])
