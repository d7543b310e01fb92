"""The `data` section that nnU-Net's rules give for the merged fingerprint of all hospitals.

Isensee et al., nnU-Net, Nature Methods 2021, arXiv:1809.10486.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medfed.data.fingerprint import Fingerprint

# nnU-Net: an axis this much coarser than the others, and this much shorter in voxels, gets the 10th
# percentile of its spacing instead of the median.
COARSE_FACTOR = 3.0
# Networks halve a patch four times, so an axis is a multiple of 16, or of 8 where it is short.
PATCH_STEP, SHORT_PATCH_STEP = 16, 8


def propose_settings(
    merged: Fingerprint, *, voxels: int = 96**3, normalise: Literal["auto", "zscore", "nyul"] = "auto"
) -> dict[str, Any]:
    """Return the `data` section of a study by nnU-Net's rules: spacing, patch and normalisation.

    Args:
        merged: the fingerprint of all hospitals.
        voxels: the most voxels that a patch may have; memory decides.
        normalise: `auto` is nnU-Net's choice, by the grid; `nyul` uses the federation's landmarks.
    """
    spacing = _target_spacing(merged)
    return {
        "kind": "images",
        "spacing_mm": [float(f"{value:.3g}") for value in spacing],
        "patch": propose_patch(np.asarray(merged.extent_mm()) / spacing, spacing, voxels),
        "channels": merged.channels,
        "normalise": _normalisation(merged, normalise),
    }


def _target_spacing(merged: Fingerprint) -> NDArray[np.float64]:
    spacing = np.asarray(merged.spacing_mm())
    size = np.asarray(merged.extent_mm()) / spacing
    worst = int(spacing.argmax())
    others = np.delete(np.arange(3), worst)
    coarse = spacing[worst] > COARSE_FACTOR * spacing[others].max()
    if coarse and size[worst] * COARSE_FACTOR < size[others].min():
        spacing[worst] = max(merged.spacing_mm(0.1)[worst], spacing[others].max())
    return spacing


def _normalisation(merged: Fingerprint, normalise: str) -> dict[str, Any]:
    if normalise == "nyul":
        return {"kind": "nyul", "landmarks": [-1.0, *(round(x, 6) for x in merged.nyul()[1:-1]), 1.0]}
    if normalise == "auto" and merged.grid == "hu":
        numbers = {"low": merged.percentile(0.5), "high": merged.percentile(99.5)}
        numbers |= {"mean": merged.mean(), "sd": merged.sd()}
        return {"kind": "fingerprint"} | {name: round(value, 2) for name, value in numbers.items()}
    return {"kind": "zscore", "foreground": False}


def propose_patch(size: NDArray[np.float64], spacing: NDArray[np.float64], voxels: int) -> list[int]:
    """Return the largest patch of at most `voxels` within the median image, along right, front and up.

    The axis that is longest relative to a cube in mm shrinks first, so that a patch sees the same share of
    each axis.
    """

    def step(axis: int) -> int:
        return PATCH_STEP if size[axis] >= 2 * PATCH_STEP else SHORT_PATCH_STEP

    # nnU-Net starts from a cube in mm and crops it to the image: a long scan doesn't make a long patch.
    cube = (1 / spacing) * (voxels * np.prod(spacing)) ** (1 / 3)
    start = np.minimum(size, 2 * cube)
    result = [max(step(axis), round(float(start[axis]) / step(axis)) * step(axis)) for axis in range(3)]
    while np.prod(result) > voxels:
        axis = max(
            (a for a in range(3) if result[a] > step(a)), key=lambda a: result[a] / cube[a], default=-1
        )
        if axis < 0:
            break
        result[axis] -= step(axis)
    return result
