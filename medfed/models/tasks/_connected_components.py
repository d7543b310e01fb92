"""Connected pieces of a segmentation: the largest only, or none below a size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


def remove_components(labels: Tensor, largest: Sequence[int], minimum_voxels: int, classes: int) -> Tensor:
    """Return labels (B, 1, ...) with small pieces, and all but the largest of some classes, as background.

    Voxels that share a corner are connected. Of equally large pieces the first in array order stays.
    """
    kept = labels.cpu().numpy().copy()
    for image in kept[:, 0]:
        for number in range(1, classes):
            _clean(image, number, number in largest, minimum_voxels)
    return torch.from_numpy(kept).to(labels.device)


def _clean(image: np.ndarray, number: int, only_largest: bool, minimum_voxels: int) -> None:
    pieces, count = ndimage.label(image == number, structure=np.ones((3,) * image.ndim))
    if count == 0:
        return
    voxels = np.bincount(pieces.reshape(-1), minlength=count + 1)
    voxels[0] = 0
    stays = voxels >= max(minimum_voxels, 1)
    if only_largest:
        stays &= np.arange(count + 1) == voxels.argmax()
    stays[0] = True
    image[~stays[pieces]] = 0
