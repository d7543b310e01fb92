"""The contract of a normalisation: a frozen record that maps a channel's voxels to a network's range."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeAlias

from medfed.errors import DataError
from medfed.registry import Kind, kind_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Voxels of one channel, (X, Y, Z), or of a volume, (C, X, Y, Z). A string, as a study is read without numpy.
Voxels: TypeAlias = "NDArray[np.float32]"


class Normalise(Kind, frozen=True):
    """Maps one channel's intensities to about -1 to 1."""

    folder: ClassVar[str] = "normalise"

    def channel(self, voxels: Voxels) -> Voxels:
        """Return new float32 voxels of the same shape; a constant channel becomes a constant.

        The input is not changed. It is finite: the transforms replace NaN by the volume's smallest value.
        """
        raise NotImplementedError

    def image(self, voxels: Voxels) -> Voxels:
        """Return a volume (C, X, Y, Z) with each channel normalised by itself."""
        import numpy as np

        channels = [self.channel(one) for one in voxels]
        return channels[0][None] if len(channels) == 1 else np.stack(channels)


def check_low_below_high(kind: Normalise, low: float, high: float) -> None:
    """Refuse limits that leave no range.

    Raises:
        DataError: naming the kind and both limits.
    """
    if low >= high:
        raise DataError(f"normalise '{kind_of(kind)}': low is {low}, high is {high}; low must lie below high")
