"""A network's outputs of whole images, computed in windows of the patch that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Windows:
    """How a whole image is divided.

    patch: the window's size in voxels; None gives the network the whole image.  spatial_dims: 2 for a network
    of planes, which sees a volume slice by slice.  overlap: of neighbouring windows, as a share of the patch.
    blend: the weights with which they are averaged.  at_once: how many go through the network together.
    """

    patch: tuple[int, ...] | None
    spatial_dims: int = 3
    overlap: float = 0.25
    blend: Literal["gaussian", "constant"] = "gaussian"
    at_once: int = 4

    def outputs(self, network: nn.Module, image: Tensor) -> Tensor:
        """Return the network's outputs (B, K, X, Y, Z) of whole images (B, C, X, Y, Z)."""
        # A volume smaller than the patch is padded like a training patch, with its darkest value. MONAI's
        # zero is mid-grey after normalisation, so instance norm would see another image than in training;
        # on hippocampus crops this cost 0.2 of Dice.
        darkest = float(image.amin())
        if self.spatial_dims == 3 or image.ndim == 4:
            return self._in_windows(network, image, darkest)
        slices = image.permute(0, 4, 1, 2, 3).flatten(0, 1)
        parts = [self._in_windows(network, some, darkest) for some in torch.split(slices, self.at_once)]
        whole = torch.unflatten(torch.cat(parts), 0, (image.shape[0], image.shape[4]))
        return whole.permute(0, 2, 3, 4, 1)

    def _in_windows(self, network: nn.Module, image: Tensor, darkest: float) -> Tensor:
        if self.patch is None:
            whole: Tensor = network(image)
            return whole
        from monai.inferers import sliding_window_inference

        outputs = sliding_window_inference(
            image, self.patch, self.at_once, network, self.overlap, mode=self.blend, cval=darkest
        )
        assert isinstance(outputs, Tensor)
        return outputs
