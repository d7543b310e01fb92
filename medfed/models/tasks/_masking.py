"""Blocks of images that are hidden, and the error of their reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod

import torch
from torch import Tensor

from medfed.errors import StudyError

# An element's error from a reconstruction and its image.
ElementError = Callable[[Tensor, Tensor], Tensor]


def blocks_of(sides: Sequence[int], block: int) -> tuple[int, ...]:
    """Return how many blocks an image has along each axis; the last one may be cut off.

    >>> blocks_of((40, 56, 4), 8)
    (5, 7, 1)
    """
    return tuple(ceil(side / block) for side in sides)


def hidden_blocks(number: int, share: float) -> int:
    """Return how many of an image's blocks are hidden: at least one is, and at least one is not.

    >>> [hidden_blocks(number, 0.6) for number in (2, 10, 3)]
    [1, 6, 2]
    """
    return min(max(round(share * number), 1), number - 1)


def draw_masks(
    count: int, sides: Sequence[int], block: int, share: float, generator: torch.Generator | None = None
) -> Tensor:
    """Return which voxels of `count` images are hidden, (count, 1, *sides) bool, as many blocks in each.

    Without a generator they are drawn from torch's global random state.

    Raises:
        StudyError: if one block covers a whole image.
    """
    blocks = blocks_of(sides, block)
    number = prod(blocks)
    if number < 2:
        size = " x ".join(map(str, sides))
        raise StudyError(
            f"task.block: a block of {block} voxels per side covers a whole image or patch of {size}; take a "
            "smaller block, or a larger data.patch"
        )
    # The ranks of random numbers are a random permutation of the blocks.
    ranks = torch.rand(count, number, generator=generator).argsort(dim=1)
    mask = (ranks < hidden_blocks(number, share)).view(count, 1, *blocks)
    for axis, side in enumerate(sides, start=2):
        mask = mask.repeat_interleave(block, dim=axis).narrow(axis, 0, side)
    return mask


def visible_mean(image: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each channel's visible voxels, (B, C, 1, ...), of images (B, C, ...)."""
    axes = tuple(range(2, image.ndim))
    visible = (~mask).to(image.dtype)
    return (image * visible).sum(axes, keepdim=True) / visible.sum(axes, keepdim=True)


def hide(image: Tensor, mask: Tensor) -> Tensor:
    """Return images (B, C, ...) whose hidden voxels have the mean of the visible ones."""
    return torch.where(mask, visible_mean(image, mask), image)


def hidden_errors(output: Tensor, image: Tensor, mask: Tensor, error: ElementError) -> Tensor:
    """Return each image's mean error over its hidden voxels and all channels, (B,)."""
    axes = tuple(range(1, image.ndim))
    hidden = mask.to(output.dtype)
    total = (error(output, image) * hidden).sum(axes)
    return total / (hidden.sum(axes) * image.shape[1])


def absolute(output: Tensor, image: Tensor) -> Tensor:
    """Return the absolute difference of each element."""
    return (output - image).abs()


def squared(output: Tensor, image: Tensor) -> Tensor:
    """Return the squared difference of each element."""
    return (output - image).square()
