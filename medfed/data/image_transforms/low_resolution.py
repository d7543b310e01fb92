"""Random low resolution: fewer voxels and back, as nnU-Net augments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.data.image_transforms._chance import Probability, Ranged
from medfed.data.image_transforms._transform import Labels, Voxels

if TYPE_CHECKING:
    import numpy as np


class LowResolution(Ranged, tag="low_resolution", frozen=True):
    """Shrinks a training image to a share of its voxels per axis, and interpolates it back to its grid.

    probability: that of changing a training image.  low, high: the limits of the share of voxels per axis.

    F. Isensee et al.: nnU-Net. Nature Methods 18 (2021). There each channel shrinks on its own, and cubic
    splines bring it back; here it is linear interpolation, which costs a tenth.
    """

    probability: Probability = 0.15
    low: Annotated[float, Meta(gt=0, le=1)] = 0.5
    high: Annotated[float, Meta(gt=0, le=1)] = 1.0

    def augmented(
        self, image: Voxels, label: Labels | None, random: np.random.Generator
    ) -> tuple[Voxels, Labels | None]:
        import numpy as np
        import torch
        from torch.nn.functional import interpolate

        share = self.draw(random)
        if share is None:
            return image, label
        sides = image.shape[1:]
        few = [max(1, round(side * share)) for side in sides]
        linear = "trilinear" if len(sides) == 3 else "bilinear"
        small = interpolate(torch.from_numpy(np.ascontiguousarray(image))[None], few, mode="nearest-exact")
        return interpolate(small, list(sides), mode=linear, align_corners=False)[0].numpy(), label
