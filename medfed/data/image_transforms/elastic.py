"""Random elastic deformation of an image and its label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.data.image_transforms._chance import Probability
from medfed.data.image_transforms._transform import Labels, Transform, Voxels

if TYPE_CHECKING:
    import numpy as np


class Elastic(Transform, tag="elastic", frozen=True):
    """Moves every voxel by a smooth random displacement; image linearly, label by its nearest voxel.

    probability: that of changing a training image.  voxels: the standard deviation of the displacements at
    the control points.  spacing: the distance of the control points, in voxels; between them displacements
    are interpolated linearly.

    P. Simard, D. Steinkraus, J. Platt: Best practices for convolutional neural networks. ICDAR 2003. There
    the displacements are smoothed by a Gaussian instead.
    """

    probability: Probability = 0.1
    voxels: Annotated[float, Meta(gt=0)] = 1.5
    spacing: Annotated[int, Meta(ge=2)] = 12

    def augmented(
        self, image: Voxels, label: Labels | None, random: np.random.Generator
    ) -> tuple[Voxels, Labels | None]:
        import numpy as np
        from scipy.ndimage import map_coordinates

        if random.random() >= self.probability:
            return image, label
        where = self.moved(image.shape[1:], random)
        channels = [map_coordinates(one, where, order=1, mode="nearest") for one in image]
        if label is not None:
            label = np.stack([map_coordinates(one, where, order=0, mode="nearest") for one in label])
        return np.stack(channels).astype(np.float32), label

    def moved(self, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        """Return from where each voxel is taken, in voxels: (axes, *shape)."""
        import numpy as np
        import torch
        from torch.nn.functional import interpolate

        few = [max(2, -(-side // self.spacing) + 1) for side in shape]
        points = torch.from_numpy(random.normal(0, self.voxels, (1, len(shape), *few)))
        linear = "trilinear" if len(shape) == 3 else "bilinear"
        displacements = interpolate(points, list(shape), mode=linear, align_corners=True)[0].numpy()
        own = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
        return np.asarray(own + displacements)
