"""Global intensity non-linear augmentation with interventional pseudo-correlation (GIN, IPA).

C. Ouyang et al.: Causality-inspired single-source domain generalization for medical image segmentation. IEEE
Transactions on Medical Imaging 42 (2023), arXiv:2111.12525. A scanner or sequence that training never saw is
imitated by what keeps shapes and changes intensities: a small convolutional network with random weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from medfed.data.image_transforms._chance import Probability
from medfed.data.image_transforms._transform import Labels, Transform, Voxels

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Leaky ReLU's slope below 0, torch's own and that of the authors' code.
SLOPE = 0.01


class GIN(Transform, tag="gin", frozen=True):
    """Sends a training image through a small convolutional network of random weights, drawn anew each time.

    The result is blended with the image by a random share and brought back to the image's Frobenius norm,
    each channel to its own.

    probability: that of changing a training image.  layers: those of the network.  features: its inner
    channels.  largest_kernel: a layer's kernel is 1 or this, which is odd, with equal probability.
    interventional: two such networks, blended by a smooth random map instead of one share, so that
    neighbouring structures change differently (IPA).  spacing: the distance of the map's control points, in
    voxels.

    Departures: the map is interpolated linearly instead of by B-splines, every channel of an image with
    several is a channel of the network, and there is no consistency loss between two changed images of a
    case.
    """

    probability: Probability = 0.5
    layers: Annotated[int, Meta(ge=1, le=8)] = 4
    features: Annotated[int, Meta(ge=1, le=16)] = 2
    largest_kernel: Annotated[int, Meta(ge=1, le=7)] = 3
    interventional: bool = False
    spacing: Annotated[int, Meta(ge=2)] = 16

    def augmented(
        self, image: Voxels, label: Labels | None, random: np.random.Generator
    ) -> tuple[Voxels, Labels | None]:
        import numpy as np
        import torch

        if random.random() >= self.probability:
            return image, label
        voxels = torch.from_numpy(np.ascontiguousarray(image))
        first = self.changed(voxels, random)
        if self.interventional:
            share = self.share_map(image.shape[1:], random)
            first = share * first + (1 - share) * self.changed(voxels, random)
        return first.numpy().astype(np.float32), label

    def changed(self, image: Tensor, random: np.random.Generator) -> Tensor:
        """Return an image (C, ...) after one random network, blended and with its old norms."""
        import torch
        from torch.nn.functional import conv2d, conv3d, leaky_relu

        channels, axes = len(image), image.ndim - 1
        convolve = conv3d if axes == 3 else conv2d
        result = image[None]
        for layer in range(self.layers):
            side = self.largest_kernel if random.random() < 0.5 else 1
            outputs = channels if layer == self.layers - 1 else self.features
            weights = random.standard_normal((outputs, result.shape[1], *(side,) * axes))
            shifts = random.standard_normal(outputs)
            kernels, added = (torch.from_numpy(one).to(image.dtype) for one in (weights, shifts))
            result = convolve(result, kernels, added, padding=side // 2)
            result = leaky_relu(result, SLOPE) if layer < self.layers - 1 else result
        share = float(random.random())
        return _with_norms(share * image + (1 - share) * result[0], image)

    def share_map(self, shape: tuple[int, ...], random: np.random.Generator) -> Tensor:
        """Return a smooth random map (*shape) of shares from 0 to 1."""
        import torch
        from torch.nn.functional import interpolate

        few = [max(2, -(-side // self.spacing) + 1) for side in shape]
        points = torch.from_numpy(random.random((1, 1, *few))).float()
        linear = "trilinear" if len(shape) == 3 else "bilinear"
        return interpolate(points, list(shape), mode=linear, align_corners=True)[0, 0]


def _with_norms(changed: Tensor, image: Tensor) -> Tensor:
    """Return an image (C, ...) whose channels have the Frobenius norms of another's."""
    axes = tuple(range(1, image.ndim))
    had, has = (one.square().sum(axes, keepdim=True).sqrt() for one in (image, changed))
    # A channel that vanished stays as it is: nothing can be scaled to the old norm.
    return changed * (had / has.clamp(min=1e-6))
