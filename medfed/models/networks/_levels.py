"""The strides and kernels of a U-Net's levels from the spacing and the patch, by nnU-Net's rules.

Isensee et al.: nnU-Net, Nature Methods 2021, arXiv:1809.10486; `get_pool_and_conv_props` of its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# An axis is pooled, and has a kernel of 3, while its voxels are less than so many times the finest's size.
ALIKE = 2.0
# No axis is pooled below so many voxels; where only one is left to pool, it has three times as many.
MIN_SIDE, MIN_LAST_SIDE = 4, 12


class Levels(NamedTuple):
    """Stride and kernel of each level, the finest first, by axis; the finest has a stride of 1."""

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]


def plan_levels(spacing_mm: Sequence[float], patch: Sequence[int], most: int) -> Levels:
    """Return at most `most` levels for patches of this size, whose voxels have this size.

    An axis with voxels at least twice the finest's is not pooled, and has a kernel of 1, until pooling the
    others has made them alike; the coarsest level has kernels of 3.

    >>> levels = plan_levels((1, 1, 5), (64, 64, 16), 4)
    >>> levels.strides
    ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))
    >>> levels.kernels
    ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3))
    """
    spacing, size, axes = list(spacing_mm), list(patch), range(len(patch))
    strides, kernels = [tuple(1 for _ in axes)], []
    kernel = [1 for _ in axes]
    while len(strides) < most and (pooled := _to_pool(spacing, size)):
        finest = min(spacing)
        kernel = [3 if spacing[axis] < ALIKE * finest else kernel[axis] for axis in axes]
        kernels.append(tuple(kernel))
        for axis in pooled:
            spacing[axis] *= 2
            size[axis] = -(-size[axis] // 2)
        strides.append(tuple(2 if axis in pooled else 1 for axis in axes))
    return Levels(tuple(strides), (*kernels, tuple(3 for _ in axes)))


def _to_pool(spacing: Sequence[float], size: Sequence[int]) -> list[int]:
    """Return the axes to pool next, none if the patch bears no further level."""
    long = [axis for axis, side in enumerate(size) if side >= 2 * MIN_SIDE]
    finest = min((spacing[axis] for axis in long), default=0.0)
    alike = [axis for axis in long if spacing[axis] < ALIKE * finest]
    return [] if len(alike) == 1 and size[alike[0]] < MIN_LAST_SIDE else alike
