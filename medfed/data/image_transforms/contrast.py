"""Random contrast about the mean, within the old range, as nnU-Net augments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medfed.data.image_transforms._chance import Ranged
from medfed.data.image_transforms._transform import Labels, Voxels

if TYPE_CHECKING:
    import numpy as np


class Contrast(Ranged, tag="contrast", frozen=True):
    """Multiplies each channel's distance from its mean by a random factor, within the channel's old range.

    probability: that of changing a training image.  low, high: the limits of the factor.

    F. Isensee et al.: nnU-Net. Nature Methods 18 (2021). There each channel has its own factor.
    """

    def augmented(
        self, image: Voxels, label: Labels | None, random: np.random.Generator
    ) -> tuple[Voxels, Labels | None]:
        import numpy as np

        factor = self.draw(random)
        if factor is None:
            return image, label
        axes = tuple(range(1, image.ndim))
        mean, least, most = (f(image, axis=axes, keepdims=True) for f in (np.mean, np.min, np.max))
        return np.clip(mean + np.float32(factor) * (image - mean), least, most).astype(np.float32), label
