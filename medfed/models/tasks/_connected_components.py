"""Connected components of a segmentation: only the largest, or only those above a size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


def remove_components(labels: Tensor, largest: Sequence[int], minimum_voxels: int, classes: int) -> Tensor:
    """Return labels (B, 1, ...) with small components, and all but the largest of
    some classes, as background.

    Voxels that share a corner are connected. Of equally large components the first in array order stays.
    """
    result = labels.cpu().numpy().copy()
    for image in result[:, 0]:
        for number in range(1, classes):
            _clean(image, number, number in largest, minimum_voxels)
    return torch.from_numpy(result).to(labels.device)


def _clean(image: np.ndarray, number: int, only_largest: bool, minimum_voxels: int) -> None:
    components, count = ndimage.label(image == number, structure=np.ones((3,) * image.ndim))
    if count == 0:
        return
    voxels = np.bincount(components.reshape(-1), minlength=count + 1)
    voxels[0] = 0
    stays = voxels >= max(minimum_voxels, 1)
    if only_largest:
        stays &= np.arange(count + 1) == voxels.argmax()
    stays[0] = True
    image[~stays[components]] = 0
