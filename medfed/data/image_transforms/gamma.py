"""Random contrast by a power of the intensities, as nnU-Net augments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.data.image_transforms._transform import Labels, Transform, Voxels
from medfed.errors import DataError

if TYPE_CHECKING:
    import numpy as np


class Gamma(Transform, tag="gamma", frozen=True):
    """Raises each channel's intensities, scaled to 0 to 1, to a random power, and scales them back.

    probability: that of changing a training image.  low, high: the limits of the power; below 1 it brightens.

    F. Isensee et al.: nnU-Net. Nature Methods 18 (2021). There the power is below or above 1 with equal
    probability; here its logarithm is uniform.
    """

    probability: Annotated[float, Meta(ge=0, le=1)] = 0.3
    low: Annotated[float, Meta(gt=0)] = 0.7
    high: Annotated[float, Meta(gt=0)] = 1.5

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise DataError(
                f"data.transforms: gamma: low is {self.low}, high is {self.high}; low is at most high"
            )

    def augmented(
        self, image: Voxels, label: Labels | None, random: np.random.Generator
    ) -> tuple[Voxels, Labels | None]:
        import numpy as np

        # Both are drawn in any case, so that what follows does not depend on the first.
        chance, power = random.random(), np.exp(random.uniform(np.log(self.low), np.log(self.high)))
        if chance >= self.probability:
            return image, label
        axes = tuple(range(1, image.ndim))
        least, most = image.min(axes, keepdims=True), image.max(axes, keepdims=True)
        span = np.where(most > least, most - least, 1)
        return np.asarray(least + span * ((image - least) / span) ** power, np.float32), label
