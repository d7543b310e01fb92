"""The numbers of an image that a sketch holds: its intensities, their shape, noise, spacing and extent.

They are of the image as its files have it, before the study's normalisation, which may hide a new scanner.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medfed.evaluation.drift.sketch import Variable

PERCENTILES = {"dark": 5, "middle": 50, "bright": 95}
# Immerkaer's mask: its answer to noise of deviation 1 has deviation 6 (Computer Vision and Image
# Understanding 64, 1996).
_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float64)


def image_variables(channels: tuple[str, ...]) -> list[Variable]:
    """Return the variables of an image with these channels."""
    found = []
    for name in channels:
        about = f" of {name}" if len(channels) > 1 else ""
        found += [
            Variable(name=f"{one} intensity{about}", kind="input", grid="number") for one in PERCENTILES
        ]
        found.append(Variable(name=f"shape of the intensities{about}", kind="input", grid="share"))
        found.append(Variable(name=f"noise{about}", kind="input", grid="number"))
    for one in ("finest spacing", "widest spacing", "largest extent"):
        found.append(Variable(name=one, kind="input", grid="number"))
    return found


def image_values(
    array: NDArray[np.floating], spacing: tuple[float, ...], channels: tuple[str, ...]
) -> dict[str, float]:
    """Return the values of one image (C, X, Y, Z); `spacing` is in mm, or in pixels without a size.

    Percentiles are of the voxels above the image's least value, as padding is no tissue. Their shape is where
    the middle lies between dark and bright: a gamma moves it, a gain does not. Noise is relative to the
    distance from dark to bright.
    """
    values: dict[str, float] = {}
    for name, voxels in zip(channels, array, strict=True):
        about = f" of {name}" if len(channels) > 1 else ""
        finite = voxels[np.isfinite(voxels)].astype(np.float64)
        tissue = finite[finite > finite.min()] if finite.size and finite.min() < finite.max() else finite
        dark, middle, bright = np.percentile(tissue, list(PERCENTILES.values())).tolist()
        for one, value in zip(PERCENTILES, (dark, middle, bright), strict=True):
            values[f"{one} intensity{about}"] = value
        width = bright - dark
        values[f"shape of the intensities{about}"] = (middle - dark) / width if width > 0 else 0.5
        values[f"noise{about}"] = noise(voxels) / width if width > 0 else 0.0
    extents = [size * step for size, step in zip(array.shape[1:], spacing, strict=False)]
    own = spacing if array.shape[3] > 1 else spacing[:2]
    return {
        **values,
        "finest spacing": min(own),
        "widest spacing": max(own),
        "largest extent": max(extents),
    }


def noise(voxels: NDArray[np.floating]) -> float:
    """Return the standard deviation of the noise in the planes of an image (X, Y, Z), by Immerkaer.

    The mask removes what is constant or linear in a plane; edges are left in, so it is an upper bound.
    """
    if min(voxels.shape[:2]) < 3:
        return 0.0
    plane = np.nan_to_num(voxels, posinf=0.0, neginf=0.0).astype(np.float64)
    x, y = plane.shape[0] - 2, plane.shape[1] - 2
    answer = sum(
        (weight * plane[i : i + x, j : j + y] for (i, j), weight in np.ndenumerate(_MASK)),
        start=np.zeros((x, y, plane.shape[2])),
    )
    return float(np.sqrt(np.pi / 2) * np.abs(answer).mean() / 6)
