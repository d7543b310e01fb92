"""Connected components of a segmentation: only the largest, or only those above a size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medfed.errors import StudyError


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
    components, voxels = connected_components(image == number)
    if len(voxels) == 1:
        return
    stays = voxels >= max(minimum_voxels, 1)
    if only_largest:
        stays &= np.arange(len(voxels)) == voxels.argmax()
    stays[0] = True
    image[~stays[components]] = 0


def connected_components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64]]:
    """Return each voxel's component, from 1 on, and how many voxels each has; of the background 0.

    Voxels that share a corner are connected.
    """
    components, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    voxels = np.bincount(components.reshape(-1), minlength=count + 1)
    voxels[0] = 0
    return components, voxels


def kept_components(
    voxels: NDArray[np.int64], rule: float | str, voxel_ml: float | None
) -> NDArray[np.bool_]:
    """Return which components stay, by their numbers of voxels (the background's first, 0).

    `rule` is the volume in ml below which a component is removed, or `largest`: all others are removed, and
    of equally large ones the first in array order stays.

    Raises:
        StudyError: if a volume is asked for and voxels have none (`voxel_ml` is None).
    """
    if rule == "largest":
        largest: NDArray[np.bool_] = np.arange(len(voxels)) == voxels.argmax()
        return largest
    if voxel_ml is None:
        raise StudyError(
            f"task.postprocess: components below {rule} ml are to be removed, and these images have no "
            "voxels with a volume in mm (planes, or files without a size); take `largest`, or leave it out"
        )
    # A tolerance far below a voxel: 100 voxels of 0.001 ml are 0.1 ml, whatever their product rounds to.
    stays: NDArray[np.bool_] = voxels * voxel_ml >= float(rule) - 1e-6 * voxel_ml
    return stays


def final_labels(task: Any, probabilities: Tensor, voxel_ml: float | None) -> NDArray[np.integer[Any]]:
    """Return a case's class numbers (X, Y, Z), of probabilities (K, X, Y, Z) on the image's own grid.

    Components are removed as `task.postprocess` says or as a run has chosen; `voxel_ml` is a voxel's volume,
    None where there is none.
    """
    labels: NDArray[np.integer[Any]] = task.labels(probabilities[None])[0, 0].cpu().numpy()
    rules = getattr(task, "postprocess", "none")
    if not isinstance(rules, Mapping) or not rules:
        return labels
    labels = labels.copy()
    for structure, rule in rules.items():
        components, voxels = connected_components(labels == task.classes.index(structure))
        stays = kept_components(voxels, rule, None if labels.shape[-1] == 1 else voxel_ml)
        stays[0] = True
        labels[~stays[components]] = 0
    return labels
