"""Gaussian noise from the operating system's generator, for privacy: never seeded, never repeated, not to be guessed.

torch's and numpy's generators are fast and predictable: whoever learns their state, or some of their output, knows
the noise and can subtract it. Here every bit comes from `os.urandom`. What is left is that floating-point numbers
have gaps, from which Mironov (CCS 2012) recovered noised values; as in Opacus' secure mode, each value is the sum of
four Gaussians over two, after which the search for the bits behind it is infeasible (Holohan and Braghin, Secure
Random Sampling in Differential Privacy, ESORICS 2021, arXiv:2107.10138).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Values drawn at a time: 32 bytes of randomness each, so that noise for any model needs little memory.
BLOCK = 1 << 17

# No value is larger than this many deviations: the uniform numbers end at 2^-53, so a radius at sqrt(106 ln 2) = 8.58, and
# a value at sqrt(2) radii.
LARGEST = 12.2


def gaussian(shape: Sequence[int], deviation: float) -> Tensor:
    """Return independent Gaussian noise of mean 0 and this standard deviation, float64, on the CPU."""
    count = int(np.prod(shape, dtype=np.int64))
    values = np.empty(count, np.float64)
    for start in range(0, count, BLOCK):
        block = values[start : start + BLOCK]
        block[:] = _four(len(block))
        block *= deviation / 2
    return torch.from_numpy(values).reshape(tuple(shape))


def seed() -> int:
    """Return 63 secret bits that seed what need not be Gaussian: dropout, augmentation."""
    return secrets.randbits(63)


def chosen(count: int, chance: float) -> list[int]:
    """Return which of `count` are drawn when each is drawn by itself with this chance (Poisson sampling)."""
    if chance >= 1:
        return list(range(count))
    return np.flatnonzero(_uniform(count) <= chance).tolist()


def _four(count: int) -> NDArray[np.float64]:
    """Return the sum of four independent standard Gaussians, each pair by Box and Muller (1958)."""
    uniform = _uniform(4 * count).reshape(4, count)
    total = np.zeros(count)
    for length, angle in ((uniform[0], uniform[1]), (uniform[2], uniform[3])):
        radius = np.sqrt(-2 * np.log(length))
        turn = 2 * np.pi * angle
        total += radius * (np.cos(turn) + np.sin(turn))
    return total


def _uniform(count: int) -> NDArray[np.float64]:
    """Return multiples of 2^-53 in (0, 1], so that their logarithm is finite."""
    bits = np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(11)
    return np.multiply(bits + np.uint64(1), 2.0**-53, dtype=np.float64)
