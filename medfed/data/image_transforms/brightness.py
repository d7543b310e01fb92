"""Random brightness by a factor, as nnU-Net augments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medfed.data.image_transforms._chance import Ranged
from medfed.data.image_transforms._transform import Labels, Voxels

if TYPE_CHECKING:
    import numpy as np


class Brightness(Ranged, tag="brightness", frozen=True):
    """Multiplies a training image's normalised intensities by a random factor.

    probability: that of changing a training image.  low, high: the limits of the factor.

    F. Isensee et al.: nnU-Net. Nature Methods 18 (2021). There each channel has its own factor.
    """

    def augmented(
        self, image: Voxels, label: Labels | None, random: np.random.Generator
    ) -> tuple[Voxels, Labels | None]:
        factor = self.draw(random)
        return (image, label) if factor is None else (image * image.dtype.type(factor), label)
