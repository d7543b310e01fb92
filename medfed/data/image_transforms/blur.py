"""Random Gaussian blur, as nnU-Net augments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.data.image_transforms._chance import Probability, Ranged
from medfed.data.image_transforms._transform import Labels, Voxels

if TYPE_CHECKING:
    import numpy as np


class Blur(Ranged, tag="blur", frozen=True):
    """Blurs a training image with a Gaussian of a random width.

    probability: that of changing a training image.  low, high: the limits of its standard deviation, in
    voxels.

    F. Isensee et al.: nnU-Net. Nature Methods 18 (2021).
    """

    probability: Probability = 0.1
    low: Annotated[float, Meta(gt=0)] = 0.5
    high: Annotated[float, Meta(gt=0, le=10)] = 1.0

    def augmented(
        self, image: Voxels, label: Labels | None, random: np.random.Generator
    ) -> tuple[Voxels, Labels | None]:
        import numpy as np
        from scipy.ndimage import gaussian_filter

        width = self.draw(random)
        if width is None:
            return image, label
        widths = (0.0, *(width,) * (image.ndim - 1))
        return np.asarray(gaussian_filter(image, widths, mode="nearest", truncate=3.0), np.float32), label
